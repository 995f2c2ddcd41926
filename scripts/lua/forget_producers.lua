-- Forgets producers that have been silent for long, so that the hash does not grow for ever.
-- EDGE none
-- KEYS[1] producers – hash, producer id to "sequence ms first-task-id words"
-- KEYS[2] rates – hash, "q" or producer id to when its rate is used up, in us
-- ARGV[1] silence – ms
-- ARGV[2] cursor – where to go on, 0 to begin
-- ARGV[3] limit – about how many to look at
-- RETURNS {cursor, forgotten}: where to go on (0: all are searched), how many were forgotten
-- COST about 1 us a producer looked at
local producers, rates = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local before = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(ARGV[1])
local page = redis.call('HSCAN', producers, ARGV[2], 'COUNT', ARGV[3])
local forgotten = 0
for i = 1, #page[2], 2 do
  local ms = tonumber(string.match(page[2][i + 1], '^%d+ (%d+) '))
  if ms and ms < before then
    forgotten = forgotten + redis.call('HDEL', producers, page[2][i])
    redis.call('HDEL', rates, page[2][i])
  end
end
return {page[1], forgotten}
