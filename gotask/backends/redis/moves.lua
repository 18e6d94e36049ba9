-- What follows is for the verbs that move jobs one by one: settle, tick, move, drop.

local function set(job, field, value)
  if value ~= job[field] then
    job[field] = value
    job.changed = job.changed or {}
    job.changed[#job.changed + 1] = field
  end
end

local function save(job)
  local puts, drops = {}, {}
  for _, field in ipairs(job.changed or {}) do
    if job[field] == nil then
      drops[#drops + 1] = field
    else
      puts[#puts + 1] = field
      puts[#puts + 1] = job[field]
    end
  end
  if job.completed_at ~= now_text then puts[#puts + 1], puts[#puts + 2] = 'updated_at', now_text end
  call('HSET', JOB .. job.id, unpack(puts))
  if drops[1] then call('HDEL', JOB .. job.id, unpack(drops)) end
end

local function removed(set_name, _, id)
  leave(set_name, id)
end

local function stands(job, put, due)
  stand(put, job.id, job.status, job.queue, job.priority, job.seq, job.place or job.seq, due)
end

-- Take a job from one state to another; `due` is its time there, `queue` another queue, `place` a new place.
local function move(job, to, due, queue, place)
  count(job.status, job.queue, -1)
  stands(job, removed, job.status ~= 'PENDING' or expiry(job))
  set(job, 'status', to)
  if queue then set(job, 'queue', queue) end
  if place then set(job, 'place', place) end
  stands(job, enter, due)
  count(to, job.queue, 1)
  if not FINISHED[to] then rung[':queue:' .. job.queue] = true end -- there is work, or a new time to wake for
end

local function queue_up(job, anew)
  move(job, 'PENDING', expiry(job), nil, anew and call('INCR', root .. ':seq') or nil)
end

local function free_key(job)
  local key = job.unique_key
  if not key then return end
  if call('HGET', root .. ':unique', key) == job.id then call('HDEL', root .. ':unique', key) end
  if job.claim then call('RPUSH', root .. ':freed', job.id .. ' ' .. job.claim .. ' ' .. key) end
end

local function finish(job, to, keep, queue)
  if queue and queue ~= job.queue then
    set(job, 'origin_queue', job.origin_queue or job.queue)
  else
    queue = nil
  end
  local usual = (to == RULES.bury.to and job.origin_queue) and KEEP_DEAD_LETTER or KEEP[to]
  set(job, 'completed_at', now_text)
  free_key(job)
  move(job, to, string.format('%d', now + (keep or usual)), queue)
  ended[#ended + 1] = job.id
end

-- The runs that ended otherwise than in the current or last one: [worker, started, ended, outcome, error], the latest ones.
local function note_attempt(job, outcome, ended_at, failure)
  local list = cjson.decode(job.attempts or '[]')
  local none = cjson.null
  list[#list + 1] = {job.worker_id or none, job.started_at or none, ended_at or none, outcome, failure or none}
  if #list > ATTEMPTS_KEPT then table.remove(list, 1) end
  set(job, 'attempts', cjson.encode(list))
end

local function forget_progress(job)
  set(job, 'progress', nil)
  set(job, 'progress_note', nil)
end
