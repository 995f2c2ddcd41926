-- Pauses or resumes a queue: a paused queue hands nothing out.
-- EDGE none
-- KEYS[1] config – hash
-- ARGV[1] pause or resume
-- ARGV[2] hints – channel
-- RETURNS a word: ok, already (nothing to change)
-- COST constant
local config, verb = KEYS[1], ARGV[1]
local changed
if verb == 'pause' then
  local time = redis.call('TIME')
  changed = redis.call('HSETNX', config, 'paused', time[1] * 1000 + math.floor(time[2] / 1000))
else
  changed = redis.call('HDEL', config, 'paused')
end
if changed == 0 then return 'already' end
redis.pcall('PUBLISH', ARGV[2], verb)
return 'ok'
