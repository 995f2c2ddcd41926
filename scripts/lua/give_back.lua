-- Gives back the tokens of tasks that ended, so that others may start at once.
-- EDGE none
-- KEYS[1] limiters – sorted set, name of a limiter by the time in ms at which its keys are gone by themselves
-- KEYS[2...] limit – two per token: sorted set of tokens, and the last turn in us that was promised to a waiting task
-- ARGV[1...] two per token: name of its limiter, token
-- RETURNS how many were held
-- COST about 3 us a token; at most 500 a call, held by the caller
local limiters, given = KEYS[1], 0
for i = 1, #ARGV, 2 do
  local key, turn = KEYS[i + 1], KEYS[i + 2]
  given = given + redis.call('ZREM', key, ARGV[i + 1])
  -- The last token of a limiter takes its keys along. Nobody has to wait, so no turn is owed.
  if redis.call('EXISTS', key) == 0 then
    redis.call('DEL', turn)
    redis.call('ZREM', limiters, ARGV[i])
  end
end
return given
