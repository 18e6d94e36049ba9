-- permit: queue, token, want, lease (microseconds) -> how many jobs may be leased with that token, from any shard
-- lease: owner, lease (microseconds), 1 if limits are judged here (else by permits), then queue, want ...
-- -> the time, the lease number, 1 if there was more than one call takes (else 0), rows as they were before the lease
if verb == 'lease' or verb == 'permit' then
  -- What a queue's record and its past allow now, of `want`.
  local function allowed(queue, lane, want, limited)
    local record = record_of(queue)
    if not record then return want end
    if record.paused then return 0 end
    lane.limit, lane.permits = number(record.max_workers) > 0, not limited
    if not limited then return want end
    if lane.limit then
      local permits = verb == 'permit' and call('ZCARD', root .. ':permits:' .. queue)
      want = math.min(want, record.max_workers - number(permits or call('HGET', root .. ':counts', 'RUNNING ' .. queue)))
    end
    local rate = number(record.rate_limit)
    if rate > 0 then -- a token bucket: it holds a second's worth, and at least one start
      local full = math.max(1, rate)
      lane.filling = true
      if not lane.tokens then
        lane.tokens = full
      elseif lane.filled_at <= now then -- else the clock stepped back: go on from here
        lane.tokens = math.min(full, lane.tokens + (now - lane.filled_at) * rate / SECOND)
      end
      want = math.min(want, math.floor(lane.tokens + 1e-9))
    end
    return want
  end

  local function lane_of(queue)
    local found = call('HMGET', root .. ':lane:' .. queue, 'leased', 'tokens', 'filled_at')
    return {leased = number(found[1]), tokens = tonumber(found[2]), filled_at = tonumber(found[3]), had = found[2]}
  end

  local function keep_lane(queue, lane, took)
    local key = root .. ':lane:' .. queue
    if took > 0 and verb == 'lease' then call('HINCRBY', key, 'leased', took) end
    if lane.filling then
      if took > 0 or lane.filled_at == nil or lane.filled_at > now then
        call('HSET', key, 'tokens', string.format('%.17g', lane.tokens - took), 'filled_at', now_text)
      end
    elseif took > 0 and lane.had and not lane.permits then -- a limit set later starts with a full bucket
      call('HDEL', key, 'tokens', 'filled_at')
    end
  end

  if verb == 'permit' then
    local queue, token, want, until_text = take(), take(), tonumber(take()), string.format('%d', now + take())
    call('ZREMRANGEBYSCORE', root .. ':permits:' .. queue, '-inf', now_text) -- of jobs whose node died
    local lane = lane_of(queue)
    local n = math.max(0, allowed(queue, lane, want, true))
    for i = 1, n do
      enter(':permits:' .. queue, until_text, token .. ' ' .. i)
    end
    keep_lane(queue, lane, n)
    return done(n)
  end

  -- The first n of a queue between two scores that have not expired, and how many were looked at. Those that have leave the
  -- queue here: they are among the due, and would only be passed again and again.
  local function head(queue, from, to, n)
    local jobs, looked = {}, 0
    while #jobs < n and looked < LOOK_MOST do
      local ids = call('ZRANGEBYSCORE', root .. ':ready:' .. queue, from, to, 'LIMIT', looked, n - #jobs)
      for _, id in ipairs(ids) do
        local job = load(id)
        local expires = job and expiry(job)
        if not job or expires and expires <= now then
          leave(':ready:' .. queue, id) -- or somebody deleted its hash by hand
        else
          jobs[#jobs + 1] = job
        end
      end
      if not ids[1] then break end
      looked = looked + #ids
    end
    return jobs, looked
  end

  local function priority_at(queue, rank)
    local found = call('ZRANGE', root .. ':ready:' .. queue, rank, rank, 'WITHSCORES')
    return found[2] and PRIORITIES - 1 - math.floor(tonumber(found[2]) / 2 ^ 49)
  end

  -- The next n in order, and whether they are the first of the queue; those whose turn of ageing falls among them go to the
  -- oldest of the rest, whatever its priority.
  local function pick(queue, n, leased)
    local aged = math.floor((leased + n) / AGEING) - math.floor(leased / AGEING)
    local highest, lowest
    if aged > 0 then
      highest, lowest = priority_at(queue, 0), priority_at(queue, -1)
      if highest == lowest then aged = 0 end -- the first are the oldest
    end
    local jobs, looked = head(queue, '-inf', '+inf', n - aged)
    if aged == 0 or #jobs < n - aged then return jobs, looked == #jobs end
    local last, rest = {}, {} -- within one priority, what was picked is the head
    for _, job in ipairs(jobs) do
      last[tonumber(job.priority)] = score(job.priority, job.place or job.seq)
    end
    for priority = lowest, highest do
      local first = score(priority, 0)
      for _, job in ipairs(head(queue, last[priority] and last[priority] + 1 or first, first + 2 ^ 49 - 1, aged)) do
        rest[#rest + 1] = job
      end
    end
    table.sort(rest, function(a, b) return number(a.place or a.seq) < number(b.place or b.seq) end)
    for i = 1, math.min(aged, #rest) do
      jobs[#jobs + 1] = rest[i]
    end
    table.sort(jobs, function(a, b)
      return score(a.priority, a.place or a.seq) < score(b.priority, b.place or b.seq)
    end)
    return jobs
  end

  -- For how many of the jobs there is room, and what is left of it: they take their bytes, the last may take more.
  local function fitting(jobs, room)
    for n, job in ipairs(jobs) do
      if room <= 0 then return n - 1, room end
      room = room - number(job.bulk)
    end
    return #jobs, room
  end

  -- The bodies of jobs by seq, read in one step if they were accepted in a row.
  local function bodies_of(jobs)
    local first, last, bodies = number(jobs[1].seq), number(jobs[1].seq), {}
    for _, job in ipairs(jobs) do
      first, last = math.min(first, job.seq), math.max(last, job.seq)
    end
    if last - first + 1 == #jobs then
      for _, entry in ipairs(call('XRANGE', LOG, first .. '-0', last .. '-0')) do
        bodies[entry[1]] = entry[2]
      end
    end
    return bodies
  end

  even_if_full()
  local owner, until_text, limited = take(), string.format('%d', now + take()), take() == '1'
  local lease, answer
  local room = BYTES_MOST
  while at < #ARGV do
    local queue, want = take(), tonumber(take())
    local lane = lane_of(queue)
    want = allowed(queue, lane, want, limited)
    local permitted = not limited and lane.limit
    local jobs, first = {}, false
    if want > 0 then jobs, first = pick(queue, want, lane.leased) end
    local picked, fit = #jobs
    fit, room = fitting(jobs, room)
    if fit < picked then
      jobs = fit > 0 and pick(queue, fit, lane.leased) or {} -- so that the turns of old jobs are those of so many
      first = false
    end
    if first and jobs[1] then call('ZREMRANGEBYRANK', root .. ':ready:' .. queue, 0, #jobs - 1) end
    if #jobs > 0 and not lease then
      lease = string.format('%d', math.max(number(call('GET', root .. ':lease')) + 1, now))
      call('SET', root .. ':lease', lease)
      answer = {now_text, lease, 0}
    end
    if #jobs < picked then answer[3] = 1 end
    local bodies = #jobs > 0 and bodies_of(jobs)
    for _, job in ipairs(jobs) do
      answer[#answer + 1] = row(job, bodies[job.seq .. '-0'], until_text)
      local key = JOB .. job.id
      call('HSET', key, 'status', 'RUNNING', 'lease', lease, 'worker_id', owner, 'started_at', now_text)
      if permitted then call('HSET', key, 'permit', queue) elseif job.permit then call('HDEL', key, 'permit') end
      -- for settle: an ack of it must clear or free something too
      if permitted or job.error or job.result or job.unique_key then call('HSET', key, 'odd', 1) end
      if job.reason then call('HDEL', key, 'reason') end
      if not first then leave(':ready:' .. queue, job.id) end
      if expiry(job) then leave(':due', job.id) end
      enter(':leases', until_text, job.id)
    end
    keep_lane(queue, lane, #jobs)
    count('PENDING', queue, -#jobs)
    count('RUNNING', queue, #jobs)
  end
  return done(answer or {})
end

-- extend: lease (microseconds), then per beat: id, lease, n, fields: progress, progress_note
-- -> 0 lost, 1 held, 2 to be stopped; with a space and the queue after it, if a permit has to be extended too
if verb == 'extend' then
  even_if_full()
  local answer, until_text = {}, string.format('%d', now + take())
  local several, limited = number(call('GET', root .. ':shards')) > 1, {}

  -- Whether a job needs a permit: it was leased by one, or its queue has got a limit since.
  local function permit_of(id, permit, queue)
    if permit or not several then return permit end
    if limited[queue] == nil then
      local record = record_of(queue)
      limited[queue] = record and number(record.max_workers) > 0
    end
    if limited[queue] then call('HSET', JOB .. id, 'permit', queue, 'odd', 1) end
    return limited[queue] and queue
  end

  while at < #ARGV do
    local id, lease, n = take(), take(), tonumber(take())
    local found = call('HMGET', JOB .. id, 'status', 'lease', 'cancel_requested', 'permit', 'queue')
    local held = found[1] == 'RUNNING' and found[2] == lease
    if held then
      enter(':leases', until_text, id)
      if n > 0 then call('HSET', JOB .. id, 'updated_at', now_text, unpack(ARGV, at + 1, at + 2 * n)) end
    end
    at = at + 2 * n
    local code = held and (found[3] and 2 or 1) or 0
    local permit = held and permit_of(id, found[4], found[5] or DEFAULTS.queue)
    answer[#answer + 1] = permit and code .. ' ' .. permit or code
  end
  return done(answer)
end
