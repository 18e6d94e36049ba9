local function cancel(job, reason)
  if reason then set(job, 'reason', reason) end
  if job.status ~= 'RUNNING' then return finish(job, RULES.cancel.to) end
  set(job, 'cancel_requested', '1')
  if job.reason then set(job, 'odd', '1') end -- an ack has something to clear
  rung[':node:' .. job.worker_id] = true
end

local STARTS_ANEW = {'retry_count', 'crashes', 'expires_at', 'started_at', 'completed_at', 'result', 'error', 'worker_id',
  'progress', 'progress_note', 'cancel_requested', 'origin_queue'}

local function revive(job, reason, claim, claimed)
  if job.unique_key then
    if claim ~= '' and job.unique_key ~= claimed then return false end -- it is another job of that id by now
    if call('HEXISTS', root .. ':unique', job.unique_key) == 1 then return false end
    call('HSET', root .. ':unique', job.unique_key, job.id)
    if claim ~= '' then set(job, 'claim', claim) end
  end
  -- the last run was told by the job's own fields, which start anew
  if job.started_at then note_attempt(job, job.status:lower(), job.completed_at, job.error) end
  local queue = job.origin_queue
  for _, field in ipairs(STARTS_ANEW) do
    set(job, field, nil)
  end
  set(job, 'reason', reason)
  move(job, RULES.revive.to, nil, queue, call('INCR', root .. ':seq'))
end

-- move: event (cancel or revive), reason ('' for none), until when by a claim (see shards.lua; '' without one) of which unique key,
-- then ids -> 1 if it was possible, else 0; 2 if it is too late for the claim
if verb == 'move' then
  even_if_full()
  local event, reason, claim, claimed, answer = take(), take(), take(), take(), {}
  local late = claim ~= '' and now > tonumber(claim)
  if reason == '' then reason = nil end
  while at < #ARGV do
    local job = load(take())
    local possible = job and RULES[event].from[job.status]
    local too_late = possible and late and job.unique_key
    if too_late then
      possible = false
    elseif possible and event == 'revive' then
      possible = revive(job, reason, claim, claimed) ~= false
    elseif possible then
      cancel(job, reason)
    end
    if possible then save(job) end
    answer[#answer + 1] = too_late and 2 or possible and 1 or 0
  end
  return done(answer)
end

-- drop: ids -> 1 if it was deleted, 0 if it is RUNNING or unknown
if verb == 'drop' then
  even_if_full()
  local answer = {}
  while at < #ARGV do
    local job = load(take())
    local possible = job and job.status ~= 'RUNNING'
    if possible then
      if not FINISHED[job.status] then free_key(job) end
      forget(job)
      ended[#ended + 1] = job.id
    end
    answer[#answer + 1] = possible and 1 or 0
  end
  return done(answer)
end
