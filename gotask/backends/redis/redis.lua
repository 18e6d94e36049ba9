-- The Redis storage: every change of a job is made here, each call of this script being one atomic step.
--
-- KEYS[1] is the root of one shard, such as `gotask:{0}`; every other key begins with it, so that a shard is one hash slot of
-- a cluster. Times are whole microseconds since the epoch by the clock of Redis. `seq` numbers jobs as they were accepted.
--
--   :job:ID        hash     what changes of a job, and what it is found by: status, queue, priority, seq, place (if it is not
--                           seq), lease, worker_id, retry_count, attempts ...; a field that is not there has its default
--   :log           stream   one entry SEQ-0 per job, the oldest first: id, at (when it was accepted), type, payload, and the
--                           rest of its body as JSON. Written once, deleted when the job is forgotten
--   :ready:QUEUE   zset     PENDING jobs by priority, then place: see score()
--   :leases        zset     RUNNING jobs by the time their lease lapses
--   :due           zset     all others that have a time, by it: when to wake, to expire, to be forgotten
--   :in:STATE      zset     jobs in a state that is rare (RARE) by seq, for listing them
--   :unique        hash     unique key -> id of the live job that holds it
--   :counts        hash     "STATE QUEUE" -> number of jobs
--   :lane:QUEUE    hash     leased (so far, for ageing); tokens and filled_at of its rate limit, if it has one
--   :seq, :lease   string   the sequences. A lease number is never below the time, so that one which a crash of Redis lost
--                           is not given out again
--   :queues, :workers, :versions   hash   records: name -> JSON, and "KIND NAME" -> version
--   :waited        zset     jobs whose end somebody waits for, by the time until which that is believed
--
-- Channels (a message says only that something happened): ROOT:queue:NAME, ROOT:job:ID, ROOT:node:OWNER.
--
-- ARGV is a verb, the time ('' unless a test moves the clock), then what the verb takes. Answers are flat lists. A job is
-- answered as a row: id, at, type, payload, more, due ('' if never), then field, value, field, value ... of its hash.
-- Above this text stand, made from gotask/states.py: RULES, ON_DUE, FINISHED, RARE, KEEP, and a few numbers.

local call, root = redis.call, KEYS[1]
local SECOND, LAST = 1000000, 2 ^ 49 - 1
local at = 2 -- the argument read last

local function take()
  at = at + 1
  return ARGV[at]
end

-- what was said with n: field, value, ...
local function take_fields()
  local said = {}
  for _ = 1, tonumber(take()) do
    local field = take()
    said[field] = take()
  end
  return said
end

local function the_time()
  local time = call('TIME')
  return tonumber(time[1]) * SECOND + tonumber(time[2])
end

local now = tonumber(ARGV[2]) or the_time()
local now_text = string.format('%.0f', now)

-- What a call changes besides the jobs' hashes is gathered here, and written by done() in large pieces.

local entered, left, counted, rung, ended = {}, {}, {}, {}, {}

local function enter(set, score, id)
  local list = entered[set] or {}
  entered[set] = list
  list[#list + 1] = score
  list[#list + 1] = id
end

local function leave(set, id)
  local list = left[set] or {}
  left[set] = list
  list[#list + 1] = id
end

local function count(queue, status, n)
  local field = status .. ' ' .. queue
  counted[field] = (counted[field] or 0) + n
end

local function ring(topic)
  rung[topic] = true
end

local function in_pieces(command, lists)
  for set, list in pairs(lists) do
    for first = 1, #list, 1000 do
      call(command, root .. set, unpack(list, first, math.min(first + 999, #list)))
    end
  end
end

local function done(answer)
  in_pieces('ZREM', left)
  in_pieces('ZADD', entered)
  for field, n in pairs(counted) do
    if n ~= 0 and call('HINCRBY', root .. ':counts', field, n) == 0 then
      call('HDEL', root .. ':counts', field)
    end
  end
  if #ended > 0 and call('EXISTS', root .. ':waited') == 1 then
    for _, id in ipairs(ended) do
      if call('ZREM', root .. ':waited', id) == 1 then ring(':job:' .. id) end
    end
  end
  for topic in pairs(rung) do
    call('PUBLISH', root .. topic, '')
  end
  return answer
end

-- At maxmemory, Redis lets a script finish whose first write needs no memory: what runs can always end.
local function even_if_full()
  call('DEL', root .. ':nothing')
end

-- One job: its fields by name, beside `id` and `hash`, the flat list that they came in.

local function load(id)
  local hash = call('HGETALL', root .. ':job:' .. id)
  if #hash == 0 then return nil end
  local job = {id = id, hash = hash, changed = {}}
  for i = 1, #hash, 2 do
    job[hash[i]] = hash[i + 1]
  end
  return job
end

local function set(job, field, value)
  if value ~= job[field] then
    job[field] = value
    job.changed[field] = true
  end
end

local function save(job)
  local puts, drops = {'updated_at', now_text}, {}
  for field in pairs(job.changed) do
    if job[field] == nil then
      drops[#drops + 1] = field
    else
      puts[#puts + 1] = field
      puts[#puts + 1] = job[field]
    end
  end
  call('HSET', root .. ':job:' .. job.id, unpack(puts))
  if #drops > 0 then call('HDEL', root .. ':job:' .. job.id, unpack(drops)) end
end

local function number(text)
  return tonumber(text) or 0
end

-- A higher priority first, then whoever has the lower place: one number, exact up to 2^53.
local function base(priority)
  return (PRIORITIES - 1 - priority) * 2 ^ 49
end

local function score(job)
  return base(tonumber(job.priority)) + tonumber(job.place or job.seq)
end

-- When a PENDING job expires: never, once an attempt at it was spent.
local function expiry(job)
  if number(job.retry_count) == 0 and number(job.crashes) == 0 then return tonumber(job.expires_at) end
end

local function due_of(job)
  if job.status == 'PENDING' then return expiry(job) end
  return call('ZSCORE', root .. (job.status == 'RUNNING' and ':leases' or ':due'), job.id)
end

local function body_of(seq)
  local found = call('XRANGE', root .. ':log', seq .. '-0', seq .. '-0')
  return found[1] and found[1][2]
end

local function row(job, body, due)
  body = body or body_of(job.seq)
  return {job.id, body[4], body[6], body[8], body[10], due or '', unpack(job.hash)}
end

local function row_of(job)
  local due = due_of(job)
  return row(job, nil, due and (type(due) == 'string' and due or string.format('%.0f', due)))
end

-- Where a job stands by its state: which sets it is in, and how it is counted.
local function stand(job, put, due)
  local status, id = job.status, job.id
  if status == 'RUNNING' then
    put(':leases', due, id)
  elseif status == 'PENDING' then
    put(':ready:' .. job.queue, score(job), id)
    if due then put(':due', due, id) end
  else
    put(':due', due, id)
  end
  if RARE[status] then put(':in:' .. status, job.seq, id) end
end

local function removed(set, _, id)
  leave(set, id)
end

-- Take a job from one state to another; `due` is its time there, `queue` another queue, `place` a new place.
local function move(job, to, due, queue, place)
  count(job.queue, job.status, -1)
  stand(job, removed, job.status ~= 'PENDING' or expiry(job))
  job.was = job.status
  set(job, 'status', to)
  if queue then set(job, 'queue', queue) end
  if place then set(job, 'place', place) end
  stand(job, enter, due)
  count(job.queue, to, 1)
  if not FINISHED[to] then ring(':queue:' .. job.queue) end -- there is work, or a new time to wake for
end

local function queue_up(job, anew)
  move(job, 'PENDING', expiry(job), nil, anew and call('INCR', root .. ':seq') or nil)
end

local function free_key(job)
  if job.unique_key and call('HGET', root .. ':unique', job.unique_key) == job.id then
    call('HDEL', root .. ':unique', job.unique_key)
  end
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
  move(job, to, now + (keep or usual), queue)
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

local function record_of(queue)
  local text = call('HGET', root .. ':queues', queue)
  return text and cjson.decode(text)
end

local verbs = {}

-- n, then per job: id, queue, priority, delay, scheduled_at, expires_at, unique_key, type, payload, more ('' for none)
-- -> the time, then per job: 1 (created), or the row of the job that stands
function verbs.enqueue()
  local n = tonumber(take())
  local seq = call('INCRBY', root .. ':seq', n) - n
  local answer = {now_text}
  for i = 1, n do
    local id, queue, priority, delay, scheduled = take(), take(), take(), take(), take()
    local expires, unique, kind, payload, more = take(), take(), take(), take(), take()
    local stands = load(id)
    local holder = not stands and unique ~= '' and call('HGET', root .. ':unique', unique)
    if holder then stands = load(holder) end
    if stands then
      answer[i + 1] = row_of(stands)
    else
      local due = math.max(now + number(delay), number(scheduled))
      local job = {id = id, seq = seq + i, queue = queue, priority = priority}
      job.status = due > now and 'SCHEDULED' or 'PENDING'
      local fields = {'status', job.status, 'queue', queue, 'priority', priority, 'seq', job.seq}
      if expires ~= '' then
        job.expires_at = expires
        fields[9], fields[10] = 'expires_at', expires
      end
      if unique ~= '' then
        fields[#fields + 1], fields[#fields + 2] = 'unique_key', unique
        call('HSET', root .. ':unique', unique, id)
      end
      call('HSET', root .. ':job:' .. id, unpack(fields))
      call('XADD', root .. ':log', string.format('%.0f-0', job.seq),
        'id', id, 'at', now_text, 'type', kind, 'payload', payload, 'more', more)
      stand(job, enter, due > now and due or expiry(job))
      count(queue, job.status, 1)
      ring(':queue:' .. queue) -- also for those that sleep: whoever keeps the time must know of an earlier one
      answer[i + 1] = 1
    end
  end
  return done(answer)
end

-- What a queue's record and its past allow now, of `want`.
local function allowed(queue, lane, want)
  local record = record_of(queue)
  if not record then return want end
  if record.paused then return 0 end
  if number(record.max_workers) > 0 then
    want = math.min(want, record.max_workers - number(call('HGET', root .. ':counts', 'RUNNING ' .. queue)))
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
  if took > 0 then call('HINCRBY', key, 'leased', took) end
  if lane.filling then
    if took > 0 or lane.filled_at == nil or lane.filled_at > now then
      call('HSET', key, 'tokens', string.format('%.17g', lane.tokens - took), 'filled_at', now_text)
    end
  elseif took > 0 and lane.had then -- a limit set later starts with a full bucket
    call('HDEL', key, 'tokens', 'filled_at')
  end
end

-- The first n of a queue between two scores that have not expired.
local function head(queue, from, to, n)
  local jobs, passed = {}, 0
  while #jobs < n do
    local ids = call('ZRANGEBYSCORE', root .. ':ready:' .. queue, from, to, 'LIMIT', passed, n - #jobs)
    for _, id in ipairs(ids) do
      local job = load(id)
      local expires = expiry(job)
      if not expires or expires > now then jobs[#jobs + 1] = job end
    end
    if #ids == 0 then break end
    passed = passed + #ids
  end
  return jobs
end

local function by_score(a, b)
  return score(a) < score(b)
end

local function priority_at(queue, rank)
  local found = call('ZRANGE', root .. ':ready:' .. queue, rank, rank, 'WITHSCORES')
  return found[2] and PRIORITIES - 1 - math.floor(tonumber(found[2]) / 2 ^ 49)
end

-- The next n in order; those whose turn of ageing falls among them go to the oldest of the rest, whatever its priority.
local function pick(queue, n, leased)
  local aged = math.floor((leased + n) / AGEING) - math.floor(leased / AGEING)
  local highest, lowest
  if aged > 0 then
    highest, lowest = priority_at(queue, 0), priority_at(queue, -1)
    if highest == lowest then aged = 0 end -- the first are the oldest
  end
  local jobs = head(queue, '-inf', '+inf', n - aged)
  if aged == 0 or #jobs < n - aged then return jobs end
  local last, rest = {}, {} -- within one priority, what was picked is the head
  for _, job in ipairs(jobs) do
    last[tonumber(job.priority)] = score(job)
  end
  for priority = lowest, highest do
    local from = last[priority] and last[priority] + 1 or base(priority)
    for _, job in ipairs(head(queue, from, base(priority) + LAST, aged)) do
      rest[#rest + 1] = job
    end
  end
  table.sort(rest, function(a, b) return tonumber(a.place or a.seq) < tonumber(b.place or b.seq) end)
  for i = 1, math.min(aged, #rest) do
    jobs[#jobs + 1] = rest[i]
  end
  table.sort(jobs, by_score)
  return jobs
end

-- The bodies of jobs, in their order; of a run of them in one step.
local function bodies_of(jobs)
  local first, last = tonumber(jobs[1].seq), tonumber(jobs[1].seq)
  for _, job in ipairs(jobs) do
    first, last = math.min(first, job.seq), math.max(last, job.seq)
  end
  if last - first + 1 ~= #jobs then return {} end
  local bodies = {}
  for i, entry in ipairs(call('XRANGE', root .. ':log', string.format('%.0f-0', first), string.format('%.0f-0', last))) do
    bodies[string.format('%.0f', first + i - 1)] = entry[2]
  end
  return bodies
end

-- owner, lease (microseconds), then queue, want ... -> the time, the lease number, rows as they were before the lease
function verbs.lease()
  even_if_full()
  local owner, until_text = take(), string.format('%.0f', now + tonumber(take()))
  local lease, answer
  while at < #ARGV do
    local queue, want = take(), tonumber(take())
    local lane = lane_of(queue)
    want = allowed(queue, lane, want)
    local jobs = want > 0 and pick(queue, want, lane.leased) or {}
    if #jobs > 0 and not lease then
      lease = string.format('%.0f', math.max(number(call('GET', root .. ':lease')) + 1, now))
      call('SET', root .. ':lease', lease)
      answer = {now_text, lease}
    end
    local bodies = #jobs > 0 and bodies_of(jobs)
    for _, job in ipairs(jobs) do
      answer[#answer + 1] = row(job, bodies[job.seq], until_text)
      call('HSET', root .. ':job:' .. job.id, 'status', 'RUNNING', 'lease', lease, 'worker_id', owner,
        'started_at', now_text, 'updated_at', now_text)
      if job.reason then call('HDEL', root .. ':job:' .. job.id, 'reason') end
      leave(':ready:' .. queue, job.id)
      if expiry(job) then leave(':due', job.id) end
      enter(':leases', until_text, job.id)
    end
    keep_lane(queue, lane, #jobs)
    count(queue, 'PENDING', -#jobs)
    count(queue, 'RUNNING', #jobs)
  end
  return done(answer or {})
end

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
    return move(job, RULES[event].to, now + (keep or 0))
  end
  set(job, 'result', said.result)
  set(job, 'error', said.error)
  if said.reason or event ~= 'cancel' then set(job, 'reason', said.reason) end
  finish(job, RULES[event].to, keep, event == 'bury' and said.queue)
end

-- per settlement: id, lease, event, n, fields: due_in, result, error, reason, crashed, queue -> 1 if it was held, else 0
function verbs.settle()
  even_if_full()
  local answer, freed = {}, {}
  while at < #ARGV do
    local id, lease, event, said = take(), take(), take(), take_fields()
    local job = load(id)
    local held = job and job.status == 'RUNNING' and job.lease == lease and RULES[event].from.RUNNING
    if held then
      freed[job.queue] = true
      settle(job, event, said)
      save(job)
    end
    answer[#answer + 1] = held and 1 or 0
  end
  for queue in pairs(freed) do -- a place of a queue with a limit is free again: other nodes may be waiting for it
    local record = record_of(queue)
    if record and number(record.max_workers) > 0 then ring(':queue:' .. queue) end
  end
  return done(answer)
end

-- lease (microseconds), then per beat: id, lease, n, fields: progress, progress_note -> 0 lost, 1 held, 2 to be stopped
function verbs.extend()
  even_if_full()
  local answer, until_text = {}, string.format('%.0f', now + tonumber(take()))
  while at < #ARGV do
    local id, lease, said = take(), take(), take_fields()
    local found = call('HMGET', root .. ':job:' .. id, 'status', 'lease', 'cancel_requested')
    local held = found[1] == 'RUNNING' and found[2] == lease
    if held then
      enter(':leases', until_text, id)
      for field, value in pairs(said) do
        call('HSET', root .. ':job:' .. id, field, value, 'updated_at', now_text)
      end
    end
    answer[#answer + 1] = held and (found[3] and 2 or 1) or 0
  end
  return done(answer)
end

local function forget(job)
  call('DEL', root .. ':job:' .. job.id)
  call('XDEL', root .. ':log', job.seq .. '-0')
  stand(job, removed, true)
  count(job.queue, job.status, -1)
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
  prune = forget,
}

-- limit -> what was done as verb, n ...; then 'next' and the time of what is due next, if anything is
function verbs.tick()
  even_if_full()
  local limit, jobs, tally = tonumber(take()), {}, {}
  for _, set_name in ipairs({':due', ':leases'}) do
    local found = call('ZRANGEBYSCORE', root .. set_name, '-inf', now_text, 'WITHSCORES', 'LIMIT', 0, limit)
    for i = 1, #found, 2 do
      local job = load(found[i])
      job.due = tonumber(found[i + 1])
      jobs[#jobs + 1] = job
    end
  end
  table.sort(jobs, function(a, b) return a.due < b.due or (a.due == b.due and tonumber(a.seq) < tonumber(b.seq)) end)
  for i = 1, math.min(limit, #jobs) do
    local job = jobs[i]
    local verb = ON_DUE[job.status].verb
    ON_TIME[verb](job)
    if verb ~= 'prune' then save(job) end
    tally[verb] = (tally[verb] or 0) + 1
  end
  call('ZREMRANGEBYSCORE', root .. ':waited', '-inf', now_text)
  local answer = done({})
  for verb, n in pairs(tally) do
    answer[#answer + 1] = verb
    answer[#answer + 1] = n
  end
  for _, set_name in ipairs({':due', ':leases'}) do
    local first = call('ZRANGE', root .. set_name, 0, 0, 'WITHSCORES')
    if first[2] then
      answer[#answer + 1] = 'next'
      answer[#answer + 1] = string.format('%.0f', math.max(0, tonumber(first[2]) - now))
    end
  end
  return answer
end

local function cancel(job, reason)
  if reason then set(job, 'reason', reason) end
  if job.status ~= 'RUNNING' then return finish(job, RULES.cancel.to) end
  set(job, 'cancel_requested', '1')
  ring(':node:' .. job.worker_id)
end

local STARTS_ANEW = {'retry_count', 'crashes', 'expires_at', 'started_at', 'completed_at', 'result', 'error', 'worker_id',
  'progress', 'progress_note', 'cancel_requested', 'origin_queue'}

local function revive(job, reason)
  if job.unique_key then
    if call('HEXISTS', root .. ':unique', job.unique_key) == 1 then return false end
    call('HSET', root .. ':unique', job.unique_key, job.id)
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

-- event (cancel or revive), reason ('' for none), then ids -> 1 if it was possible, else 0
function verbs.move()
  even_if_full()
  local event, reason, answer = take(), take(), {}
  if reason == '' then reason = nil end
  while at < #ARGV do
    local job = load(take())
    local possible = job and RULES[event].from[job.status]
    if possible and event == 'revive' then
      possible = revive(job, reason) ~= false
    elseif possible then
      cancel(job, reason)
    end
    if possible then save(job) end
    answer[#answer + 1] = possible and 1 or 0
  end
  return done(answer)
end

-- ids -> 1 if it was deleted, 0 if it is RUNNING or unknown
function verbs.drop()
  even_if_full()
  local answer = {}
  while at < #ARGV do
    local job = load(take())
    local possible = job and job.status ~= 'RUNNING'
    if possible then
      free_key(job)
      forget(job)
      ended[#ended + 1] = job.id
    end
    answer[#answer + 1] = possible and 1 or 0
  end
  return done(answer)
end

-- ids -> rows, empty for the unknown
function verbs.get()
  local answer = {}
  while at < #ARGV do
    local job = load(take())
    answer[#answer + 1] = job and row_of(job) or {}
  end
  return answer
end

-- The next jobs below seq `cursor`, newest first, as pairs of seq and id: of one state if it has an index, else of all.
local function below(status, cursor)
  local pairs_ = {}
  if status == 'RUNNING' then
    for _, id in ipairs(call('ZRANGE', root .. ':leases', 0, -1)) do
      local seq = tonumber(call('HGET', root .. ':job:' .. id, 'seq'))
      if not cursor or seq < cursor then pairs_[#pairs_ + 1] = {seq, id} end
    end
    table.sort(pairs_, function(a, b) return a[1] > b[1] end)
  elseif RARE[status] then
    local found = call('ZREVRANGEBYSCORE', root .. ':in:' .. status, cursor and string.format('(%.0f', cursor) or '+inf',
      '-inf', 'WITHSCORES', 'LIMIT', 0, 100)
    for i = 1, #found, 2 do
      pairs_[#pairs_ + 1] = {tonumber(found[i + 1]), found[i]}
    end
  else
    local from = cursor and string.format('(%.0f-0', cursor) or '+'
    for _, entry in ipairs(call('XREVRANGE', root .. ':log', from, '-', 'COUNT', 100)) do
      pairs_[#pairs_ + 1] = {tonumber(entry[1]:match('^%d+')), entry[2][2], entry[2]}
    end
  end
  return pairs_
end

local function matches(job, body, wanted)
  return (wanted.status == '' or job.status == wanted.status) and (wanted.queue == '' or job.queue == wanted.queue)
    and (wanted.worker == '' or job.worker_id == wanted.worker) and (wanted.unique == '' or job.unique_key == wanted.unique)
    and (wanted.type == '' or body[6] == wanted.type)
    and (wanted.after == '' or tonumber(body[4]) >= tonumber(wanted.after))
    and (wanted.before == '' or tonumber(body[4]) < tonumber(wanted.before))
end

-- queue, status, type, worker, unique key, after, before, cursor ('' for any), then how many matches to skip and to answer
-- -> where to go on ('' at the end), how many are still to skip, rows. Looks at so many jobs, then wants to be called again
function verbs.page()
  local wanted = {queue = take(), status = take(), type = take(), worker = take(), unique = take(), after = take(),
    before = take()}
  local cursor, skip, n = tonumber(take()), tonumber(take()), tonumber(take())
  local rows, looked = {}, 0
  while looked < LOOK_MOST do
    local found = below(wanted.status, cursor)
    if #found == 0 then return {'', skip, rows} end
    for _, pair in ipairs(found) do
      looked, cursor = looked + 1, pair[1]
      local job = load(pair[2])
      local body = pair[3] or body_of(job.seq)
      if matches(job, body, wanted) then
        if skip > 0 then
          skip = skip - 1
        else
          rows[#rows + 1] = row_of(job)
          if #rows == n then return {string.format('%.0f', cursor), skip, rows} end
        end
      end
    end
  end
  return {string.format('%.0f', cursor), skip, rows}
end

-- -> "STATE QUEUE", n ...
function verbs.counts()
  return call('HGETALL', root .. ':counts')
end

local function version_is(kind, name, expected)
  local version = number(call('HGET', root .. ':versions', kind .. ' ' .. name))
  return expected == '' or tonumber(expected) == version
end

-- kind, name, expected version ('' for any), JSON -> 1 if it was put
function verbs.put()
  even_if_full()
  local kind, name, expected, body = take(), take(), take(), take()
  if not version_is(kind, name, expected) then return 0 end
  call('HSET', root .. ':' .. kind .. 's', name, body)
  call('HINCRBY', root .. ':versions', kind .. ' ' .. name, 1)
  if kind == 'queue' then ring(':queue:' .. name) end -- it may have been resumed, or its limits raised
  return done(1)
end

-- kind, name, expected version ('' for any) -> 1 if it was dropped
function verbs.discard()
  local kind, name, expected = take(), take(), take()
  if not version_is(kind, name, expected) then return 0 end
  call('HDEL', root .. ':versions', kind .. ' ' .. name)
  if kind == 'queue' then ring(':queue:' .. name) end
  return done(call('HDEL', root .. ':' .. kind .. 's', name))
end

-- kind, then names, or none for all -> name, version, JSON ...
function verbs.records()
  local kind, answer = take(), {}
  local names = {take()}
  if #names == 0 then names = call('HKEYS', root .. ':' .. kind .. 's') end
  for _, name in ipairs(names) do
    local body = call('HGET', root .. ':' .. kind .. 's', name)
    if body then
      answer[#answer + 1] = name
      answer[#answer + 1] = call('HGET', root .. ':versions', kind .. ' ' .. name)
      answer[#answer + 1] = body
    end
  end
  return answer
end

-- seconds, then ids of jobs whose end somebody waits for
function verbs.await()
  local until_text = string.format('%.0f', now + tonumber(take()) * SECOND)
  while at < #ARGV do
    enter(':waited', until_text, take())
  end
  return done(1)
end

return verbs[ARGV[1]]()
