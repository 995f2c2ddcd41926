-- Takes entries of one lane from workers that died: retires each and issues its task again, one crash later.
-- EDGE active -> ready
-- EDGE active -> retry
-- EDGE active -> archived
-- EDGE active -> gone
-- KEYS[1] lane – stream that is searched
-- KEYS[2] front – stream that gets tasks after their first crash; may be the same
-- KEYS[3] index – hash, task id to lane letter and entry id
-- KEYS[4] parked – hash, task id to lane, crashes and message
-- KEYS[5] retry – sorted set, task id by due time in ms
-- KEYS[6] archived – sorted set, task id by the time in ms at which it was archived
-- KEYS[7] cancels – hash, lane letter and entry id to mark
-- KEYS[8] stats – hash, counters over all time
-- KEYS[9] day – hash, counters of this UTC day
-- ARGV[1] letter – lane letter of KEYS[1]
-- ARGV[2] me – consumer that claims
-- ARGV[3] dead – consumer known to be dead, whose entries are taken at once; empty: whoever let a lease run out
-- ARGV[4] lease – ms of idleness, by Redis's clock, after which an entry is its worker's no more
-- ARGV[5] cursor – where to go on, 0-0 to begin
-- ARGV[6] limit – most entries to look at
-- ARGV[7] crash limit – crashes after which the task is archived
-- ARGV[8] back-off – ms before the second re-issue; doubles with each further one, and up to twice that for
--         tasks that are recovered together
-- ARGV[9] hints – channel
-- ARGV[10] done – channel prefix; the task id follows it
-- RETURNS {cursor, front, retry, archived, vanished, pending, deleted, crashed, taken}: where to go on (0-0: the lane is
--         searched), how many tasks went where, how many entries had no content left, how many of the lane are still
--         active, how many were deleted because their cancel asked for that, the ids of those archived for crashes, and
--         of all tasks that were taken
-- COST about 20 us a task; at most 100 entries a call, held by the caller
local lane, front, index, parked, retry, archived, cancels, stats, day =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local letter, me, dead, lease, cursor, limit = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local crash_limit, backoff = tonumber(ARGV[7]), tonumber(ARGV[8])

-- A lane that no worker has read from has no group, and nothing to recover.
local pending = redis.pcall('XPENDING', lane, 'w')
if pending.err then return {'0-0', 0, 0, 0, 0, 0, 0, {}, {}} end
if pending[1] == 0 then return {'0-0', 0, 0, 0, 0, 0, 0, {}, {}} end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local taken, vanished = {}, 0
if dead == '' then
  -- JUSTID, because 6.2 answers a vanished entry without its id otherwise.
  local claimed = redis.call('XAUTOCLAIM', lane, 'w', me, lease, cursor, 'COUNT', limit, 'JUSTID')
  cursor, taken = claimed[1], claimed[2]
  -- From Redis 7 on, vanished entries are left out of the answer's second part and told in its third.
  vanished = claimed[3] and #claimed[3] or 0
else
  for _, row in ipairs(redis.call('XPENDING', lane, 'w', '-', '+', limit, dead)) do taken[#taken + 1] = row[1] end
  cursor = #taken == limit and '0-1' or '0-0'
end

local fronted, delayed, buried, cancelled, deleted, crashed, ids, earliest = 0, 0, 0, 0, 0, {}, {}, nil
local marked = redis.call('EXISTS', cancels) == 1
for _, entry in ipairs(taken) do
  local found = redis.call('XRANGE', lane, entry, entry)[1]
  redis.call('XACK', lane, 'w', entry)
  if not found then
    vanished = vanished + 1
  else
    local f = {}
    for k = 1, #found[2], 2 do f[found[2][k]] = found[2][k + 1] end
    local home, crashes = f.l or letter, (tonumber(f.c) or 0) + 1
    -- An entry that is no task goes on as one without a message, which a worker archives.
    local id, message = f.id or entry, f.m or ''
    redis.call('XDEL', lane, entry)
    ids[#ids + 1] = id
    local mark = marked and redis.call('HGET', cancels, letter .. entry)
    local reason, due
    if mark then
      -- What a cancel asked for is final, also when the worker died before it could see to it.
      local verb, ms = string.match(mark, '^(%a)(%d+)$')
      redis.call('HDEL', cancels, letter .. entry)
      cancelled = cancelled + 1
      if verb == 'r' then due = now + tonumber(ms) elseif verb ~= 'd' then reason = '!cancelled:' end
    elseif crashes > crash_limit then
      reason = '!crashed:'
      crashed[#crashed + 1] = id
    elseif crashes > 1 then
      -- Not the first crash: the task itself may be what kills, so the fleet gets time between the blows.
      -- Those that crashed together come back one after the other, spread over as much time again: else
      -- the one that kills would take the same companions with it each time, up to the crash limit.
      due = now + math.floor(backoff * 2 ^ (crashes - 2) * (1 + delayed / #taken))
    end
    if reason then
      redis.call('HDEL', index, id)
      redis.call('ZADD', archived, now, id)
      redis.call('HSET', parked, id, home .. crashes .. reason .. message)
      redis.pcall('PUBLISH', ARGV[10] .. id, 'archived')
      buried = buried + 1
    elseif due then
      redis.call('HDEL', index, id)
      redis.call('ZADD', retry, due, id)
      redis.call('HSET', parked, id, home .. crashes .. ':' .. message)
      if not earliest or due < earliest then earliest = due end
      delayed = delayed + 1
    elseif mark then
      redis.call('HDEL', index, id)
      redis.pcall('PUBLISH', ARGV[10] .. id, 'deleted')
      deleted = deleted + 1
    else
      local fresh = redis.call('XADD', front, '*', 'id', id, 'm', message, 'l', home, 'c', crashes)
      redis.call('HSET', index, id, 'f' .. fresh)
      fronted = fronted + 1
    end
  end
end
if earliest then redis.pcall('PUBLISH', ARGV[9], 'due') end

-- A counter at its end starts again rather than fail the script, which could not be rolled back.
local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
if #taken + vanished > 0 then
  count(stats, 'recovered', fronted + delayed)
  count(day, 'recovered', fronted + delayed)
  count(stats, 'archived', buried)
  count(stats, 'vanished', vanished)
  count(day, 'vanished', vanished)
  count(day, 'archived', buried)
  count(stats, 'cancelled', cancelled)
  count(day, 'cancelled', cancelled)
  redis.pcall('EXPIRE', day, 7776000)
end
return {cursor, fronted, delayed, buried, vanished, redis.call('XPENDING', lane, 'w')[1], deleted, crashed, ids}
