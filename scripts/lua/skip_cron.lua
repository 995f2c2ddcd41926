-- Drops what a cron entry has missed: its next tick becomes a later one, and nothing is enqueued.
-- EDGE none
-- KEYS[1] cron_due – sorted set, cron entry id, space and digest, by next tick in ms
-- KEYS[2] ticks – list, the last ticks that fired or were dropped
-- ARGV[1] member – of the entry in cron_due
-- ARGV[2] expected – what its next tick is, in ms
-- ARGV[3] wanted – what it becomes, in ms; 0: there is none
-- RETURNS a word: ok; stale (somebody else has fired or dropped it)
-- COST constant
local cron_due, ticks, member, expected, wanted = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local due = redis.call('ZSCORE', cron_due, member)
if not due or tonumber(due) ~= tonumber(expected) then return 'stale' end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if wanted == '0' then redis.call('ZREM', cron_due, member) else redis.call('ZADD', cron_due, wanted, member) end
redis.call('LPUSH', ticks, table.concat({#member .. ':' .. member, expected, now, 'skipped -'}, ' '))
redis.call('LTRIM', ticks, 0, 999)
return 'ok'
