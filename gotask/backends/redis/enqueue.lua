-- enqueue: until when by a claim (see shards.lua; '' without one), how many jobs, then per run of jobs alike: queue, priority,
-- type, more, n, fields: delay, scheduled_at, expires_at, unique_key; how many, and of each its id and payload
-- -> the time they were created at, then for each that was not: its position, and the row of the job that stands instead; or
-- nothing, if it is too late to create the one that has a claim
if verb == 'enqueue' then
  local claim, most = take(), take()
  local late = claim ~= '' and now > tonumber(claim) -- another job may have the unique key by now
  local seq = call('INCRBY', root .. ':seq', most) - most -- a job that is not created leaves a gap
  local answer, position = {now_text}, 0

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

  -- What the hashes of a run's jobs have beside `seq`.
  local function told(queue, priority, status, said)
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
    add('claim', claim, '')
    return fields
  end

  while at < #ARGV do
    local queue, priority, kind, more, n = unpack(ARGV, at + 1, at + 5)
    local said = fields_from(at + 6, n)
    at = at + 5 + 2 * n
    local status, due = 'PENDING', said.expires_at
    local wakes = math.max(now + number(said.delay), number(said.scheduled_at))
    if wakes > now then status, due = 'SCHEDULED', string.format('%d', wakes) end
    local fields, born, accepted = told(queue, priority, status, said), ' ' .. now_text .. ' ' .. kind, 0
    for _ = 1, take() do
      local id, payload = take(), take()
      position, seq = position + 1, seq + 1
      local key, seq_text = JOB .. id, string.format('%d', seq)
      if late and call('EXISTS', key) == 0 then return {} end
      local stands = standing(id, key, seq_text, said.unique_key)
      if stands then
        answer[#answer + 1] = position
        answer[#answer + 1] = row_of(load(stands))
      else
        if fields[1] then call('HSET', key, unpack(fields)) end
        if #payload + #more >= BULK_FROM then call('HSET', key, 'bulk', #payload + #more) end
        if more == '' then
          call('XADD', LOG, seq_text, 'job', id .. born, 'payload', payload)
        else
          call('XADD', LOG, seq_text, 'job', id .. born, 'payload', payload, 'more', more)
        end
        stand(enter, id, status, queue, priority, seq_text, seq, due)
        accepted = accepted + 1
      end
    end
    if accepted > 0 then
      count(status, queue, accepted)
      rung[':queue:' .. queue] = true -- also for those that sleep: whoever keeps the time must know of an earlier one
    end
  end
  return done(answer)
end
