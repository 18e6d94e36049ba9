-- enqueue: per job: id, queue, priority, delay, scheduled_at, expires_at, unique_key, type, payload, more ('' for none)
-- -> per job: the time it was created at, or the row of the job that stands
if verb == 'enqueue' then
  local function tell(fields, field, value, default)
    if value ~= default then
      fields[#fields + 1] = field
      fields[#fields + 1] = value
    end
  end

  local n = (#ARGV - at) / 10
  local seq = call('INCRBY', root .. ':seq', n) - n
  local answer = {}
  for i = 1, n do
    local id, queue, priority, delay, scheduled, expires, unique, kind, payload, more = unpack(ARGV, at + 1, at + 10)
    at = at + 10
    local key = JOB .. id
    local stands = call('EXISTS', key) == 1 and id
    if not stands and unique ~= '' then stands = call('HGET', root .. ':unique', unique) end
    if stands then
      answer[i] = row_of(load(stands))
    else
      local due = math.max(now + number(delay), number(scheduled))
      local job = {
        id = id, queue = queue, priority = priority, seq = string.format('%d', seq + i),
        status = due > now and 'SCHEDULED' or 'PENDING',
      }
      local fields = {'seq', job.seq}
      tell(fields, 'status', job.status, DEFAULTS.status)
      tell(fields, 'queue', queue, DEFAULTS.queue)
      tell(fields, 'priority', priority, DEFAULTS.priority)
      tell(fields, 'expires_at', expires, '')
      tell(fields, 'unique_key', unique, '')
      if unique ~= '' then call('HSET', root .. ':unique', unique, id) end
      call('HSET', key, unpack(fields))
      call('XADD', LOG, job.seq .. '-0', 'id', id, 'at', now_text, 'type', kind, 'payload', payload, 'more', more)
      stand(job, enter, due > now and string.format('%d', due) or expires ~= '' and expires)
      count(job.status, queue, 1)
      rung[':queue:' .. queue] = true -- also for those that sleep: whoever keeps the time must know of an earlier one
      answer[i] = now_text
    end
  end
  return done(answer)
end
