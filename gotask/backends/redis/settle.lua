local GOES_ON = {retry = true, snooze = true, release = true} -- what a job that somebody asked to stop must not do

local function settle(job, event, said)
  if said.crashed then set(job, 'crashes', number(job.crashes) + 1) end
  if event == 'retry' then set(job, 'retry_count', number(job.retry_count) + 1) end
  local keep = said.due_in and tonumber(said.due_in)
  if job.cancel_requested and GOES_ON[event] then event, keep = 'cancel', nil end
  if GOES_ON[event] then
    local released = event == 'release'
    if not released or said.crashed or said.error or said.reason then note_attempt(job, event, now_text, said.error) end
    if said.error or not released then set(job, 'error', said.error) end
    set(job, 'reason', said.reason)
    if released then return queue_up(job) end
    forget_progress(job)
    return move(job, RULES[event].to, string.format('%d', now + (keep or 0)))
  end
  set(job, 'result', said.result)
  set(job, 'error', said.error)
  if said.reason or event ~= 'cancel' then set(job, 'reason', said.reason) end
  finish(job, RULES[event].to, keep, event == 'bury' and said.queue)
end

-- settle: per settlement: id, lease, event, n, fields: due_in, result, error, reason, crashed, queue -> 1 if it was held, else 0;
-- or the queue, if it was held and its permit has to be handed back
if verb == 'settle' then
  even_if_full()
  local acked, kept = RULES.ack.to, string.format('%d', now + KEEP[RULES.ack.to])
  local answer, freed = {}, {}

  -- An ack that says no more than a result, of a job that is not odd (see lease.lua): what settle() would come to. 0 if it was
  -- not held; nil if there is more to do.
  local function ack(id, lease, said)
    local key = JOB .. id
    local found = call('HMGET', key, 'status', 'lease', 'queue', 'odd')
    if found[1] ~= 'RUNNING' or found[2] ~= lease then return 0 end
    if found[4] then return nil end
    if said.result then
      call('HSET', key, 'status', acked, 'completed_at', now_text, 'result', said.result)
    else
      call('HSET', key, 'status', acked, 'completed_at', now_text)
    end
    leave(':leases', id)
    enter(':due', kept, id)
    ended[#ended + 1] = id
    local queue = found[3] or DEFAULTS.queue
    freed[queue] = (freed[queue] or 0) + 1
    return 1
  end

  local function in_full(id, lease, event, said)
    local job = load(id)
    if not job or job.status ~= 'RUNNING' or job.lease ~= lease or not RULES[event].from.RUNNING then return 0 end
    freed[job.queue] = freed[job.queue] or 0
    settle(job, event, said)
    save(job)
    return job.permit or 1
  end

  while at < #ARGV do
    local id, lease, event, n = unpack(ARGV, at + 1, at + 4)
    local said = fields_from(at + 5, n)
    at = at + 4 + 2 * n
    local plain = event == 'ack' and (n == '0' or n == '1' and said.result)
    answer[#answer + 1] = plain and ack(id, lease, said) or in_full(id, lease, event, said)
  end
  for queue, n in pairs(freed) do
    count('RUNNING', queue, -n)
    count(acked, queue, n)
    local record = record_of(queue)
    if record and number(record.max_workers) > 0 then
      rung[':queue:' .. queue] = true -- a place is free again: other nodes may be waiting for it
    end
  end
  return done(answer)
end
