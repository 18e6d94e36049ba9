-- get: ids -> rows, empty for the unknown
if verb == 'get' then
  local answer = {}
  while at < #ARGV do
    local job = load(take())
    answer[#answer + 1] = job and row_of(job) or {}
  end
  return answer
end

-- page: queue, status, type, worker, unique key, after, before, cursor ('' for any), then how many matches to skip and to answer
-- -> where to go on ('' at the end), how many are still to skip, rows. Looks at so many jobs, then wants to be called again
if verb == 'page' then
  local queue, status, kind, worker, unique, after, before = unpack(ARGV, at + 1, at + 7)
  local cursor, skip, n = tonumber(ARGV[at + 8]), tonumber(ARGV[at + 9]), tonumber(ARGV[at + 10])

  local function equal(wanted, value)
    return wanted == '' or wanted == value
  end

  local step, bytes = 10, 0 -- a few at first: bodies may be large

  -- The next jobs of one state, or of all, whose seq is below `cursor`, newest first: {seq, id, body if it was read too}.
  local function below(status, cursor)
    local jobs = {}
    if status == 'RUNNING' then -- all at once, so that what a filter leaves is little
      for _, id in ipairs(call('ZRANGE', root .. ':leases', 0, -1)) do
        local found = call('HMGET', JOB .. id, 'seq', 'worker_id', 'queue')
        local seq = tonumber(found[1])
        if seq and (not cursor or seq < cursor) and equal(worker, found[2]) and equal(queue, found[3] or DEFAULTS.queue) then
          jobs[#jobs + 1] = {seq, id}
        end
      end
      table.sort(jobs, function(a, b) return a[1] > b[1] end)
    elseif RARE[status] then
      local from = cursor and string.format('(%d', cursor) or '+inf'
      local found = call('ZREVRANGEBYSCORE', root .. ':in:' .. status, from, '-inf', 'WITHSCORES', 'LIMIT', 0, 100)
      for i = 1, #found, 2 do
        jobs[#jobs + 1] = {tonumber(found[i + 1]), found[i]}
      end
    else
      local from = cursor and string.format('(%d-0', cursor) or '+'
      for _, entry in ipairs(call('XREVRANGE', LOG, from, '-', 'COUNT', step)) do
        jobs[#jobs + 1] = {tonumber(entry[1]:match('^%d+')), entry[2][2]:match('^%S+'), entry[2]}
      end
    end
    return jobs
  end

  local function matches(job, body)
    local accepted, its_kind = body[2]:match('^%S+ (%d+) (.*)$')
    return equal(status, job.status) and equal(queue, job.queue) and equal(worker, job.worker_id)
      and equal(unique, job.unique_key) and equal(kind, its_kind)
      and (after == '' or number(accepted) >= number(after)) and (before == '' or number(accepted) < number(before))
  end

  local rows, looked = {}, 0
  while looked < LOOK_MOST and bytes < BYTES_MOST do
    local found = below(status, cursor)
    if not found[1] then return {'', skip, rows} end
    for _, one in ipairs(found) do
      if looked == LOOK_MOST or bytes >= BYTES_MOST then break end
      looked, cursor = looked + 1, one[1]
      local job = load(one[2])
      local body = one[3] or body_of(one[1])
      bytes = bytes + #body[4] + (job and job.result and #job.result or 0)
      if job and matches(job, body) then
        if skip > 0 then
          skip = skip - 1
        else
          rows[#rows + 1] = row_of(job, body)
          if #rows == n then return {string.format('%d', cursor), skip, rows} end
        end
      end
    end
    step = 100
  end
  return {string.format('%d', cursor), skip, rows}
end

-- counts: -> "STATE QUEUE", n ...
if verb == 'counts' then return call('HGETALL', root .. ':counts') end
