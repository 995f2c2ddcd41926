-- Removes a queue with all its keys, unless a worker runs a task of it; in one step, so that none can start meanwhile.
-- EDGE ready -> gone
-- EDGE scheduled -> gone
-- EDGE retry -> gone
-- EDGE aggregating -> gone
-- EDGE completed -> gone
-- EDGE archived -> gone
-- KEYS[1] front – stream
-- KEYS[2] high – stream
-- KEYS[3] normal – stream
-- KEYS[4] low – stream
-- KEYS[5] scheduled – sorted set
-- KEYS[6] retry – sorted set
-- KEYS[7] completed – sorted set
-- KEYS[8] archived – sorted set
-- KEYS[9] aggregating – sorted set
-- KEYS[10] limiters – sorted set, names of the limiters that have keys of their own
-- KEYS[11] cron – hash, cron entry id to its definition
-- KEYS[12...] other – every other key of the queue
-- ARGV[1] force – 1 to remove it with its tasks and schedules, 0 only when it has none
-- ARGV[2] count – of limiters whose keys are among KEYS
-- RETURNS {word, tasks, schedules}: ok, active, full (not forced), changed (another limiter has come: ask again); how many
--         tasks and schedules were removed, are active, or would have been removed
-- COST about 1 us a key; Redis frees the memory in the background
local tasks, active = 0, 0
-- Keys of the wrong type hold no task; they go, too.
local function number(reply) return type(reply) == 'number' and reply or 0 end
for k = 1, 4 do
  tasks = tasks + number(redis.pcall('XLEN', KEYS[k]))
  local pending = redis.pcall('XPENDING', KEYS[k], 'w')
  if not pending.err then active = active + pending[1] end
end
for k = 5, 9 do tasks = tasks + number(redis.pcall('ZCARD', KEYS[k])) end
local schedules = number(redis.pcall('HLEN', KEYS[11]))
if active > 0 then return {'active', active, 0} end
if tasks + schedules > 0 and ARGV[1] ~= '1' then return {'full', tasks, schedules} end
if number(redis.pcall('ZCARD', KEYS[10])) > tonumber(ARGV[2]) then return {'changed', tasks, schedules} end
for i = 1, #KEYS do redis.call('UNLINK', KEYS[i]) end
return {'ok', tasks, schedules}
