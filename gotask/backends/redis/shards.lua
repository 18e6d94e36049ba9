-- What needs one place in a store of several shards: how many those are, the holders of unique keys, the limits of queues.

-- open: number of shards -> the number that this store has
if verb == 'open' then
  local key = root .. ':shards'
  return call('GET', key) or (call('SET', key, ARGV[3]) and ARGV[3])
end

-- A claim is text, "ID UNTIL": the job that may hold a unique key, and the time by the clock of this shard until which it may
-- still be made, or begin anew, by that claim. "ID UNTIL +": until then, it may be by an earlier claim of its own, too.

-- claim: unique key, id, how long its job may be made, how long after that clocks may still differ (microseconds), the claim that
-- may be replaced ('' for none), + if one of the same id may be that is not over
-- -> UNTIL; or the claim that stands, and for how long it may be used (microseconds)
if verb == 'claim' then
  local key, id, under_way, margin, expected, besides = take(), take(), take(), take(), take(), take()
  local stands, ends, mark = call('HGET', root .. ':claims', key), now + under_way, ''
  if stands then
    local holder, until_text = stands:match('^(%S+) ?(%d*)')
    local left = math.max(0, number(until_text) + margin + 1 - now)
    if stands ~= expected and left > 0 and holder == id and besides == '+' then
      mark = ' +'
    elseif stands ~= expected and (left > 0 or holder ~= id) then
      return {stands, left}
    end
    if holder == id then ends = math.max(ends, number(until_text) + 1) end -- each is another one
  end
  local ends_text = string.format('%d', ends)
  call('HSET', root .. ':claims', key, id .. ' ' .. ends_text .. mark)
  call('ZADD', root .. ':claimed', ends_text, key)
  return {ends_text}
end

-- holds: unique key, id, unique key, id ... -> the claim by which that job, alive, holds its key, or '' if it does not
if verb == 'holds' then
  local answer = {}
  while at < #ARGV do
    local key, id = take(), take()
    local ends = call('HGET', root .. ':unique', key) == id and call('HGET', JOB .. id, 'claim')
    answer[#answer + 1] = ends and id .. ' ' .. ends or ''
  end
  return answer
end

-- over: n, how long clocks may differ -> two lists of unique key, claim ...: n of jobs that have ended, and n by which nobody
-- makes a job any more, whether or not somebody did
if verb == 'over' then
  local n, margin, freed, stale = take(), take(), {}, {}
  for _, entry in ipairs(call('LRANGE', root .. ':freed', 0, n - 1)) do
    local claim, key = entry:match('^(%S+ %S+) (.*)$')
    freed[#freed + 1] = key
    freed[#freed + 1] = claim
  end
  local before = string.format('(%d', now - margin)
  for _, key in ipairs(call('ZRANGEBYSCORE', root .. ':claimed', '-inf', before, 'LIMIT', 0, n)) do
    local claim = call('HGET', root .. ':claims', key)
    if claim then
      stale[#stale + 1] = key
      stale[#stale + 1] = claim
    else
      call('ZREM', root .. ':claimed', key) -- somebody deleted the claim by hand
    end
  end
  return {freed, stale}
end

-- judged: unique key, the claim that was looked into, the one by which its job holds the key ('' if it does not), unique key ...
if verb == 'judged' then
  even_if_full()
  while at < #ARGV do
    local key, claim, right = take(), take(), take()
    if call('HGET', root .. ':claims', key) == claim then -- else it is another's by now, or that job begins anew
      if right == '' then
        call('HDEL', root .. ':claims', key)
      elseif right ~= claim then
        call('HSET', root .. ':claims', key, right) -- and it is looked into again, as that job may have ended meanwhile
      end
      if right == '' or right == claim then call('ZREM', root .. ':claimed', key) end
    end
  end
  return 1
end

-- swept: n, key and claim of the first: the first n of :freed were dealt with, unless somebody else has said so
if verb == 'swept' then
  local n, key, claim = take(), take(), take()
  if call('LINDEX', root .. ':freed', 0) == claim .. ' ' .. key then call('LTRIM', root .. ':freed', n, -1) end
  return 1
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
