-- Adds, changes, pauses, resumes or removes a cron entry, if it still is as the caller has seen it.
-- EDGE none
-- KEYS[1] cron – hash, cron entry id to digest of its schedule, ":" and definition
-- KEYS[2] cron_due – sorted set, cron entry id, space and digest, by next tick in ms
-- ARGV[1] id – of the entry
-- ARGV[2] expected – what is stored now; empty: nothing
-- ARGV[3] wanted – what is to be stored; empty: nothing
-- ARGV[4] due – next tick in ms; 0: none
-- ARGV[5] hints – channel
-- RETURNS a word: ok; changed (it is no longer as expected: nothing was done)
-- COST constant
local cron, cron_due, id, expected, wanted, due = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if (redis.call('HGET', cron, id) or '') ~= expected then return 'changed' end
local function member(stored) return id .. ' ' .. string.match(stored, '^%x*') end

if wanted == '' then redis.call('HDEL', cron, id) else redis.call('HSET', cron, id, wanted) end
local before, after = member(expected), member(wanted)
if wanted == '' or due == '0' or before ~= after then redis.call('ZREM', cron_due, before) end
-- Where the schedule is the same, its next tick stays: it may be late, and then it must not be lost.
if wanted ~= '' and due ~= '0' then redis.call('ZADD', cron_due, 'NX', due, after) end
redis.pcall('PUBLISH', ARGV[5], 'due')
return 'ok'
