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
  local answer, freed = {}, {}
  while at < #ARGV do
    local id, lease, event, n = unpack(ARGV, at + 1, at + 4)
    local said = fields_from(at + 5, n)
    at = at + 4 + 2 * n
    local job = load(id)
    local held = job and job.status == 'RUNNING' and job.lease == lease and RULES[event].from.RUNNING
    if held then
      freed[job.queue] = true
      settle(job, event, said)
      save(job)
    end
    answer[#answer + 1] = held and (job.permit or 1) or 0
  end
  for queue in pairs(freed) do -- a place of a queue with a limit is free again: other nodes may be waiting for it
    local record = record_of(queue)
    if record and number(record.max_workers) > 0 then rung[':queue:' .. queue] = true end
  end
  return done(answer)
end

