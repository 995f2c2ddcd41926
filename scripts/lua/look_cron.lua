-- Reads which cron entries are due, and with what; drops ticks of entries that are gone.
-- EDGE none
-- KEYS[1] cron – hash, cron entry id to digest of its schedule, ":" and definition
-- KEYS[2] cron_due – sorted set, cron entry id, space and digest, by next tick in ms
-- ARGV[1] limit – most entries, at most 500
-- RETURNS {now, wait, orphans, due}: Redis's time in ms; ms until the next tick of those not told, -1: there is none;
--         ticks dropped; due = member, tick in ms, definition, and so on, the earliest first
-- COST about 2 us an entry
local cron, cron_due, limit = KEYS[1], KEYS[2], tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local rows = redis.call('ZRANGEBYSCORE', cron_due, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
local due, orphans = {}, 0
for i = 1, #rows, 2 do
  local id, digest = string.match(rows[i], '^(.*) (%x*)$')
  local stored = id and redis.call('HGET', cron, id)
  if stored and string.match(stored, '^%x*') == digest then
    due[#due + 1] = rows[i]
    due[#due + 1] = rows[i + 1]
    due[#due + 1] = stored
  else
    redis.call('ZREM', cron_due, rows[i])
    orphans = orphans + 1
  end
end
local wait, head = -1, redis.call('ZRANGEBYSCORE', cron_due, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
if head[2] then wait = head[2] - now end
if #rows == 2 * limit then wait = 0 end
return {now, wait, orphans, due}
