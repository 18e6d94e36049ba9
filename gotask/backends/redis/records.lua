local function version_is(kind, name, expected)
  local version = number(call('HGET', root .. ':versions', kind .. ' ' .. name))
  return expected == '' or tonumber(expected) == version
end

local function forget_queue(name)
  call('DEL', root .. ':lane:' .. name, root .. ':permits:' .. name) -- what runs now has its permit again with its next beat
end

-- What the other shards, if there are any, know a change of a queue's record by.
local function change_of(kind)
  if kind ~= 'queue' or number(call('GET', root .. ':shards')) <= 1 then return 1 end
  return call('INCR', root .. ':change')
end

-- put: kind, name, expected version ('' for any), JSON -> 0 if it was not put, else the number of the change
if verb == 'put' then
  even_if_full()
  local kind, name, expected, body = take(), take(), take(), take()
  if not version_is(kind, name, expected) then return 0 end
  call('HSET', root .. ':' .. kind .. 's', name, body)
  call('HINCRBY', root .. ':versions', kind .. ' ' .. name, 1)
  if kind == 'queue' then rung[':queue:' .. name] = true end -- it may have been resumed, or its limits raised
  return done(change_of(kind))
end

-- discard: kind, name, expected version ('' for any) -> 0 if it was not dropped, else the number of the change
if verb == 'discard' then
  local kind, name, expected = take(), take(), take()
  if not version_is(kind, name, expected) then return 0 end
  call('HDEL', root .. ':versions', kind .. ' ' .. name)
  if kind == 'queue' then
    forget_queue(name)
    rung[':queue:' .. name] = true
  end
  if call('HDEL', root .. ':' .. kind .. 's', name) == 0 then return done(0) end
  return done(change_of(kind))
end

-- copy: number of a change, name of a queue, JSON ('' if it was dropped) -> 0 if that is not the next change of this shard
if verb == 'copy' then
  even_if_full()
  local change, name, body = tonumber(take()), take(), take()
  if change ~= number(call('GET', root .. ':change')) + 1 then return 0 end
  call('INCR', root .. ':change')
  if body == '' then
    call('HDEL', root .. ':queues', name)
    forget_queue(name)
  else
    call('HSET', root .. ':queues', name, body)
  end
  rung[':queue:' .. name] = true
  return done(1)
end

-- queues: -> number of the latest change, then name, JSON ... of all
if verb == 'queues' then
  local answer = call('HGETALL', root .. ':queues')
  table.insert(answer, 1, number(call('GET', root .. ':change')))
  return answer
end

-- renew: what `queues` answered at the first shard, to be had instead of what there is
if verb == 'renew' then
  even_if_full()
  local had, change = call('HKEYS', root .. ':queues'), take()
  call('DEL', root .. ':queues')
  call('SET', root .. ':change', change)
  for i = at + 1, #ARGV, 2 do
    call('HSET', root .. ':queues', ARGV[i], ARGV[i + 1])
    rung[':queue:' .. ARGV[i]] = true
  end
  for _, name in ipairs(had) do
    if not rung[':queue:' .. name] then forget_queue(name) end
    rung[':queue:' .. name] = true
  end
  return done(1)
end

-- records: kind, then names, or none for all -> name, version, JSON ...
if verb == 'records' then
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

-- await: seconds, then ids of jobs whose end somebody waits for -> id, when it ended ... of those that have
if verb == 'await' then
  even_if_full()
  local until_text, answer = string.format('%d', now + tonumber(take()) * SECOND), {}
  while at < #ARGV do
    local id = take()
    enter(':waited', until_text, id)
    local ended_at = call('HGET', JOB .. id, 'completed_at')
    if ended_at then
      answer[#answer + 1] = id
      answer[#answer + 1] = ended_at
    end
  end
  return done(answer)
end
