-- What needs one place in a store of several shards: how many those are, the holders of unique keys, the limits of queues.

-- open: number of shards -> the number that this store has
if verb == 'open' then
  local key = root .. ':shards'
  return call('GET', key) or (call('SET', key, ARGV[3]) and ARGV[3])
end

-- claim: unique key, id, the holder that may be replaced ('' for none) -> the id that holds the key now
if verb == 'claim' then
  local key, id, expected = take(), take(), take()
  local holder = call('HGET', root .. ':claims', key)
  if holder and holder ~= expected then return holder end
  call('HSET', root .. ':claims', key, id)
  return id
end

-- unclaim: unique key, id, unique key, id ...
if verb == 'unclaim' then
  while at < #ARGV do
    local key, id = take(), take()
    if call('HGET', root .. ':claims', key) == id then call('HDEL', root .. ':claims', key) end
  end
  return 1
end

-- swept: n, key and id of the first: the first n of :freed were dealt with, unless somebody else has said so
if verb == 'swept' then
  local n, key, id = take(), take(), take()
  if call('LINDEX', root .. ':freed', 0) == id .. ' ' .. key then call('LTRIM', root .. ':freed', n, -1) end
  return 1
end

-- freed: n -> key, id ... of jobs that have ended
if verb == 'freed' then
  local answer = {}
  for _, entry in ipairs(call('LRANGE', root .. ':freed', 0, ARGV[3] - 1)) do
    local id, key = entry:match('^(%S+) (.*)$')
    answer[#answer + 1] = key
    answer[#answer + 1] = id
  end
  return answer
end

-- permitted: queue, token, how many were reserved with it, lease (microseconds), then ids that run by them from now on
if verb == 'permitted' then
  local queue, token, reserved, until_text = take(), take(), tonumber(take()), string.format('%d', now + take())
  local unused = -(#ARGV - at)
  for i = 1, reserved do
    unused = unused + call('ZREM', root .. ':permits:' .. queue, token .. ' ' .. i)
  end
  while at < #ARGV do
    enter(':permits:' .. queue, until_text, take())
  end
  if unused > 0 and call('HEXISTS', root .. ':lane:' .. queue, 'tokens') == 1 then
    call('HINCRBYFLOAT', root .. ':lane:' .. queue, 'tokens', unused)
  end
  return done(1)
end

-- unpermit: queue, ids
if verb == 'unpermit' then
  local queue = take()
  while at < #ARGV do
    leave(':permits:' .. queue, take())
  end
  rung[':queue:' .. queue] = true -- other nodes may be waiting for the place
  return done(1)
end
