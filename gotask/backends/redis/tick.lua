local function forget(job)
  call('DEL', JOB .. job.id)
  call('XDEL', LOG, job.seq .. '-0')
  stands(job, removed, true)
  count(job.status, job.queue, -1)
end

local function lapse(job)
  set(job, 'crashes', number(job.crashes) + 1)
  if job.cancel_requested then return finish(job, RULES.cancel.to) end
  if job.crashes >= CRASHES_MAX then
    local record = record_of(job.queue)
    local dead = record and record.dead_letter_queue
    set(job, 'error', 'Its worker was lost ' .. job.crashes .. ' times while it ran.')
    set(job, 'reason', 'poison')
    return finish(job, RULES.bury.to, nil, type(dead) == 'string' and dead)
  end
  note_attempt(job, 'lapse', now_text)
  forget_progress(job)
  set(job, 'reason', 'its lease lapsed')
  queue_up(job, true)
end

local ON_TIME = {
  promote = function(job) queue_up(job, true) end,
  lapse = lapse,
  expire = function(job) finish(job, ON_DUE.PENDING.to) end,
}

-- What forgetting a job takes, and what decides whether that is its turn; its result may be large.
local function glance(id)
  local found = call('HMGET', JOB .. id, 'seq', 'status', 'queue', 'priority', 'place')
  if not found[1] then return nil end
  return {id = id, seq = found[1], status = found[2] or DEFAULTS.status, queue = found[3] or DEFAULTS.queue,
    priority = found[4] or DEFAULTS.priority, place = found[5]}
end

-- tick: limit -> what was done as verb, n ...; 'next' and the time of what is due next, if anything is;
-- 'change' and the latest change of a queue's record that this shard knows of, if there are several
if verb == 'tick' then
  even_if_full()
  local limit, jobs, tally = tonumber(take()), {}, {}
  for _, set_name in ipairs({':due', ':leases'}) do
    local found = call('ZRANGEBYSCORE', root .. set_name, '-inf', now_text, 'WITHSCORES', 'LIMIT', 0, limit)
    for i = 1, #found, 2 do
      local job = glance(found[i])
      if job then
        job.due = tonumber(found[i + 1])
        jobs[#jobs + 1] = job
      else
        call('ZREM', root .. set_name, found[i]) -- somebody deleted its hash by hand
      end
    end
  end
  table.sort(jobs, function(a, b) return a.due < b.due or (a.due == b.due and tonumber(a.seq) < tonumber(b.seq)) end)
  for i = 1, math.min(limit, #jobs) do
    local job = jobs[i]
    local what = ON_DUE[job.status].verb
    if what == 'prune' then
      forget(job)
    else
      job = load(job.id)
      ON_TIME[what](job)
      save(job)
    end
    tally[what] = (tally[what] or 0) + 1
  end
  call('ZREMRANGEBYSCORE', root .. ':waited', '-inf', now_text)
  local answer = done({})
  for what, n in pairs(tally) do
    answer[#answer + 1] = what
    answer[#answer + 1] = n
  end
  for _, set_name in ipairs({':due', ':leases'}) do
    local first = call('ZRANGE', root .. set_name, 0, 0, 'WITHSCORES')
    if first[2] then
      answer[#answer + 1] = 'next'
      answer[#answer + 1] = string.format('%d', math.max(0, tonumber(first[2]) - now))
    end
  end
  local change = call('GET', root .. ':change')
  if change then
    answer[#answer + 1] = 'change'
    answer[#answer + 1] = change
  end
  return answer
end

