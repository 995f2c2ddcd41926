-- Notes how far running tasks are, where this worker still holds them: what comes late is refused, and nothing is created.
-- EDGE none
-- KEYS[1] front – stream
-- KEYS[2] high – stream
-- KEYS[3] normal – stream
-- KEYS[4] low – stream
-- KEYS[5] progress – hash, task id to what its handler said last
-- ARGV[1] consumer – the worker that says so
-- ARGV[2...] three per task: lane letter and entry id, task id, what its handler says
-- RETURNS one word per task, separated by spaces: ok, lost
-- COST about 3 us a task; at most 250 tasks a call, held by the caller
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local progress, consumer = KEYS[5], ARGV[1]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local words = {}

for i = 2, #ARGV, 3 do
  local lane, entry = string.sub(ARGV[i], 1, 1), string.sub(ARGV[i], 2)
  local pending = redis.pcall('XPENDING', lanes[lane], 'w', entry, entry, 1, consumer)
  if pending.err or #pending == 0 then
    words[#words + 1] = 'lost'
  else
    redis.call('HSET', progress, ARGV[i + 1], now .. ' ' .. ARGV[i + 2])
    words[#words + 1] = 'ok'
  end
end
return table.concat(words, ' ')
