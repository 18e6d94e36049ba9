-- enqueue: per job: id, queue, priority, type, payload, more, n, fields: delay, scheduled_at, expires_at, unique_key
-- -> per job: the time it was created at, or the row of the job that stands
if verb == 'enqueue' then
  local function add(fields, field, value)
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end

  local answer = {}
  while at < #ARGV do
    local id, queue, priority, kind, payload, more, n = unpack(ARGV, at + 1, at + 7)
    local said = fields_from(at + 8, n)
    at = at + 7 + 2 * n
    local key, unique = JOB .. id, said.unique_key
    local stands = call('EXISTS', key) == 1 and id or unique and call('HGET', root .. ':unique', unique)
    if stands then
      answer[#answer + 1] = row_of(load(stands))
    else
      local seq = string.format('%d', call('INCR', root .. ':seq'))
      local job = {id = id, seq = seq, queue = queue, priority = priority, status = 'PENDING'}
      local due, fields = said.expires_at, {'seq', seq}
      if n ~= '0' then
        local wakes = math.max(now + number(said.delay), number(said.scheduled_at))
        if wakes > now then
          job.status, due = 'SCHEDULED', string.format('%d', wakes)
          add(fields, 'status', job.status)
        end
        if said.expires_at then add(fields, 'expires_at', said.expires_at) end
        if unique then
          add(fields, 'unique_key', unique)
          call('HSET', root .. ':unique', unique, id)
        end
      end
      if queue ~= DEFAULTS.queue then add(fields, 'queue', queue) end
      if priority ~= DEFAULTS.priority then add(fields, 'priority', priority) end
      call('HSET', key, unpack(fields))
      if more == '' then
        call('XADD', LOG, seq .. '-0', 'id', id, 'at', now_text, 'type', kind, 'payload', payload)
      else
        call('XADD', LOG, seq .. '-0', 'id', id, 'at', now_text, 'type', kind, 'payload', payload, 'more', more)
      end
      stand(job, enter, due)
      count(job.status, queue, 1)
      rung[':queue:' .. queue] = true -- also for those that sleep: whoever keeps the time must know of an earlier one
      answer[#answer + 1] = now_text
    end
  end
  return done(answer)
end
