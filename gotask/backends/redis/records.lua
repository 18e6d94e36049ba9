local function version_is(kind, name, expected)
  local version = number(call('HGET', root .. ':versions', kind .. ' ' .. name))
  return expected == '' or tonumber(expected) == version
end

-- put: kind, name, expected version ('' for any), JSON -> 1 if it was put
if verb == 'put' then
  even_if_full()
  local kind, name, expected, body = take(), take(), take(), take()
  if not version_is(kind, name, expected) then return 0 end
  call('HSET', root .. ':' .. kind .. 's', name, body)
  call('HINCRBY', root .. ':versions', kind .. ' ' .. name, 1)
  if kind == 'queue' then rung[':queue:' .. name] = true end -- it may have been resumed, or its limits raised
  return done(1)
end

-- discard: kind, name, expected version ('' for any) -> 1 if it was dropped
if verb == 'discard' then
  local kind, name, expected = take(), take(), take()
  if not version_is(kind, name, expected) then return 0 end
  call('HDEL', root .. ':versions', kind .. ' ' .. name)
  if kind == 'queue' then
    call('DEL', root .. ':lane:' .. name, root .. ':permits:' .. name) -- what runs now has its permit again with its next beat
    rung[':queue:' .. name] = true
  end
  return done(call('HDEL', root .. ':' .. kind .. 's', name))
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

-- await: seconds, then ids of jobs whose end somebody waits for
if verb == 'await' then
  even_if_full()
  local until_text = string.format('%d', now + tonumber(take()) * SECOND)
  while at < #ARGV do
    enter(':waited', until_text, take())
  end
  return done(1)
end
