-- The Redis storage: every change of a job is made here, each call of this script being one atomic step.
--
-- KEYS[1] is the root of one shard, such as `gotask:{0}`; every other key begins with it, so that a shard is one hash slot of
-- a cluster. Times are whole microseconds since the epoch by the clock of Redis. `seq` numbers jobs as they were accepted.
--
--   :job:ID        hash     what changes of a job, and what it is found by: seq, status, queue, priority, place (if it is not
--                           seq), permit and odd (see lease.lua), bulk (bytes of a body that is large), lease, worker_id ...; a
--                           field that is not there has its default, and updated_at is there only when no other of its
--                           times is as late
--   :log           stream   one entry SEQ-0 per job, the oldest first: as `job` its id, when it was accepted and its type; its
--                           payload; as `more` the rest of its body, as JSON, if there is any. Written once, deleted when the job is
--                           forgotten
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
--   :shards        string   how many shards the store has. With more than one there are also, for what needs one place:
--   :claims        hash     at the shard of a unique key: key -> "ID UNTIL", the job that may hold it, in whichever shard, and
--                           the time until which it may be made; a job's `claim` is the UNTIL by which it was made
--   :claimed       zset     keys whose claims have to be looked into, by UNTIL: their jobs may never have been made
--   :freed         list     "ID UNTIL KEY" of jobs that have ended, whose claims can be forgotten
--   :change        string   number of the latest change of a queue's record: made, at the first shard, or known, at the others
--   :permits:QUEUE zset     at the shard of a queue with limits: ids of jobs that may run, and reservations, by when they lapse
--
-- Channels (a message says only that something happened): ROOT:queue:NAME, ROOT:job:ID, ROOT:node:OWNER.
--
-- ARGV is a verb, the time ('' unless a test moves the clock), then what the verb takes. Answers are flat lists. A job is
-- answered as a row: job (as in the log), payload, more, due ('' if never), then field, value, field, value ... of its hash.
-- Made from gotask/states.py and model.py by script.py: above this text RARE, DEFAULTS and a few numbers; above moves.lua
-- RULES, ON_DUE, FINISHED, KEEP. Each verb returns where it stands, so that a call makes nothing that only others need.

local call, verb, root = redis.call, ARGV[1], KEYS[1]
local JOB, LOG = root .. ':job:', root .. ':log'
local SECOND = 1000000
local at = 2 -- the argument read last

local now = tonumber(ARGV[2])
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) * SECOND + tonumber(time[2])
end
local now_text = string.format('%d', now) -- Lua's own way from number to text keeps 14 digits, and is slower

local function take()
  at = at + 1
  return ARGV[at]
end

local NOTHING = {}

-- n fields and their values, from argument `first` on
local function fields_from(first, n)
  if n == '0' then return NOTHING end
  local said = {}
  for i = first, first + 2 * n - 2, 2 do
    said[ARGV[i]] = ARGV[i + 1]
  end
  return said
end

local function number(text)
  return tonumber(text) or 0
end

-- What a call changes besides the hashes of jobs is gathered here, and written by done() in large pieces.

local entered, left, counted, rung, ended = {}, {}, {}, {}, {}

local function enter(set, score, id)
  local list = entered[set]
  if not list then
    list = {}
    entered[set] = list
  end
  list[#list + 1] = score
  list[#list + 1] = id
end

-- The score of an id that this call has entered.
local function entered_as(set, id)
  local list = entered[set] or {}
  for i = #list, 2, -2 do
    if list[i] == id then return list[i - 1] end
  end
end

local function leave(set, id)
  local list = left[set]
  if not list then
    list = {}
    left[set] = list
  end
  list[#list + 1] = id
end

local function count(status, queue, n)
  local field = status .. ' ' .. queue
  counted[field] = (counted[field] or 0) + n
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
      if call('ZREM', root .. ':waited', id) == 1 then rung[':job:' .. id] = true end
    end
  end
  for topic in pairs(rung) do
    call('PUBLISH', root .. topic, '')
  end
  return answer
end

-- One job: its fields by name, beside `id` and `hash`, the flat list that they came in.

local function load(id)
  local hash = call('HGETALL', JOB .. id)
  if not hash[1] then return nil end
  local job = {id = id, hash = hash, status = DEFAULTS.status, queue = DEFAULTS.queue, priority = DEFAULTS.priority}
  for i = 1, #hash, 2 do
    job[hash[i]] = hash[i + 1]
  end
  return job
end

-- A higher priority first, then whoever has the lower place: one number, exact up to 2^53.
local function score(priority, place)
  return (PRIORITIES - 1 - priority) * 2 ^ 49 + place
end

-- When a PENDING job expires: never, once an attempt at it was spent.
local function expiry(job)
  if job.expires_at and number(job.retry_count) == 0 and number(job.crashes) == 0 then return tonumber(job.expires_at) end
end

-- Where a job stands by its state: which sets it is in.
local function stand(put, id, status, queue, priority, seq, place, due)
  if status == 'RUNNING' then
    put(':leases', due, id)
  elseif status == 'PENDING' then
    put(':ready:' .. queue, string.format('%d', score(priority, place)), id)
    if due then put(':due', due, id) end
  else
    put(':due', due, id)
  end
  if RARE[status] then put(':in:' .. status, seq, id) end
end

local function body_of(seq)
  return call('XRANGE', LOG, seq .. '-0', seq .. '-0')[1][2]
end

local function row(job, body, due)
  body = body or body_of(job.seq)
  return {body[2], body[4], body[6] or '', due, unpack(job.hash)}
end

local function row_of(job, body)
  local due
  if job.status == 'PENDING' then
    due = expiry(job) and job.expires_at
  else
    local set = job.status == 'RUNNING' and ':leases' or ':due'
    due = call('ZSCORE', root .. set, job.id) or entered_as(set, job.id)
  end
  return row(job, body, due or '')
end

local function record_of(queue)
  local text = call('HGET', root .. ':queues', queue)
  return text and cjson.decode(text)
end

-- At maxmemory, Redis lets a script finish whose first write needs no memory: what runs can always end.
local function even_if_full()
  call('DEL', root .. ':nothing')
end
