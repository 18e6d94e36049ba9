-- enqueue: per job: id, queue, priority, type, payload, more, n, fields: delay, scheduled_at, expires_at, unique_key
-- -> per job: the time it was created at, or the row of the job that stands
if verb == 'enqueue' then
  local most = math.floor((#ARGV - at) / 7) -- jobs with fields are fewer, and leave a gap
  local seq = call('INCRBY', root .. ':seq', most) - most
  local answer, accepted = {}, {}

  -- What stands in the way of a job: one of its id, or the live one that has its unique key. If nothing does, the job is
  -- there from now on.
  local function standing(id, key, seq_text, unique)
    if unique and call('EXISTS', key) == 0 then
      local holder = call('HGET', root .. ':unique', unique)
      if holder and call('EXISTS', JOB .. holder) == 1 then return holder end -- else somebody deleted its hash by hand
      call('HSET', root .. ':unique', unique, id)
    end
    return call('HSETNX', key, 'seq', seq_text) == 0 and id
  end

  local function tell(key, queue, priority, status, said)
    local fields = {}
    local function add(field, value, default)
      if value and value ~= default then
        fields[#fields + 1] = field
        fields[#fields + 1] = value
      end
    end
    add('status', status, DEFAULTS.status)
    add('queue', queue, DEFAULTS.queue)
    add('priority', priority, DEFAULTS.priority)
    add('expires_at', said.expires_at)
    add('unique_key', said.unique_key)
    if fields[1] then call('HSET', key, unpack(fields)) end
  end

  while at < #ARGV do
    local id, queue, priority, kind, payload, more, n = unpack(ARGV, at + 1, at + 7)
    local said = fields_from(at + 8, n)
    at = at + 7 + 2 * n
    seq = seq + 1
    local key, seq_text = JOB .. id, string.format('%d', seq)
    local stands = standing(id, key, seq_text, said.unique_key)
    if stands then
      answer[#answer + 1] = row_of(load(stands))
    else
      local status, due = 'PENDING', said.expires_at
      if n ~= '0' then
        local wakes = math.max(now + number(said.delay), number(said.scheduled_at))
        if wakes > now then status, due = 'SCHEDULED', string.format('%d', wakes) end
      end
      if n ~= '0' or queue ~= DEFAULTS.queue or priority ~= DEFAULTS.priority then
        tell(key, queue, priority, status, said)
      end
      if more == '' then
        call('XADD', LOG, seq_text .. '-0', 'id', id, 'at', now_text, 'type', kind, 'payload', payload)
      else
        call('XADD', LOG, seq_text .. '-0', 'id', id, 'at', now_text, 'type', kind, 'payload', payload, 'more', more)
      end
      stand(enter, id, status, queue, priority, seq_text, seq, due)
      local of = accepted[queue] or {}
      accepted[queue] = of
      of[status] = (of[status] or 0) + 1
      answer[#answer + 1] = now_text
    end
  end
  for queue, of in pairs(accepted) do
    for status, n in pairs(of) do
      count(status, queue, n)
    end
    rung[':queue:' .. queue] = true -- also for those that sleep: whoever keeps the time must know of an earlier one
  end
  return done(answer)
end
