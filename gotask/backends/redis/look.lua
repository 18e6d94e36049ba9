-- get: ids -> rows, empty for the unknown
if verb == 'get' then
  local answer = {}
  while at < #ARGV do
    local job = load(take())
    answer[#answer + 1] = job and row_of(job) or {}
  end
  return answer
end

-- The next jobs below seq `cursor`, newest first, as pairs of seq and id: of one state if it has an index, else of all.
local function below(status, cursor)
  local found_ = {}
  if status == 'RUNNING' then
    for _, id in ipairs(call('ZRANGE', root .. ':leases', 0, -1)) do
      local seq = tonumber(call('HGET', JOB .. id, 'seq'))
      if not cursor or seq < cursor then found_[#found_ + 1] = {seq, id} end
    end
    table.sort(found_, function(a, b) return a[1] > b[1] end)
  elseif RARE[status] then
    local found = call('ZREVRANGEBYSCORE', root .. ':in:' .. status, cursor and string.format('(%d', cursor) or '+inf',
      '-inf', 'WITHSCORES', 'LIMIT', 0, 100)
    for i = 1, #found, 2 do
      found_[#found_ + 1] = {tonumber(found[i + 1]), found[i]}
    end
  else
    local from = cursor and string.format('(%d-0', cursor) or '+'
    for _, entry in ipairs(call('XREVRANGE', LOG, from, '-', 'COUNT', 100)) do
      found_[#found_ + 1] = {tonumber(entry[1]:match('^%d+')), entry[2][2], entry[2]}
    end
  end
  return found_
end

local function matches(job, body, wanted)
  return (wanted.status == '' or job.status == wanted.status) and (wanted.queue == '' or job.queue == wanted.queue)
    and (wanted.worker == '' or job.worker_id == wanted.worker) and (wanted.unique == '' or job.unique_key == wanted.unique)
    and (wanted.type == '' or body[6] == wanted.type)
    and (wanted.after == '' or tonumber(body[4]) >= tonumber(wanted.after))
    and (wanted.before == '' or tonumber(body[4]) < tonumber(wanted.before))
end

-- page: queue, status, type, worker, unique key, after, before, cursor ('' for any), then how many matches to skip and to answer
-- -> where to go on ('' at the end), how many are still to skip, rows. Looks at so many jobs, then wants to be called again
if verb == 'page' then
  local wanted = {queue = take(), status = take(), type = take(), worker = take(), unique = take(), after = take(),
    before = take()}
  local cursor, skip, n = tonumber(take()), tonumber(take()), tonumber(take())
  local rows, looked = {}, 0
  while looked < LOOK_MOST do
    local found = below(wanted.status, cursor)
    if #found == 0 then return {'', skip, rows} end
    for _, pair in ipairs(found) do
      looked, cursor = looked + 1, pair[1]
      local job = load(pair[2])
      local body = pair[3] or body_of(job.seq)
      if matches(job, body, wanted) then
        if skip > 0 then
          skip = skip - 1
        else
          rows[#rows + 1] = row_of(job)
          if #rows == n then return {string.format('%d', cursor), skip, rows} end
        end
      end
    end
  end
  return {string.format('%d', cursor), skip, rows}
end

-- counts: -> "STATE QUEUE", n ...
if verb == 'counts' then return call('HGETALL', root .. ':counts') end
