-- Moves tasks whose time has come, by Redis's clock, into their lanes; says when to come again.
-- EDGE scheduled -> ready
-- EDGE retry -> ready
-- EDGE scheduled -> archived
-- EDGE retry -> archived
-- KEYS[1] high – stream, lane of high priority
-- KEYS[2] normal – stream
-- KEYS[3] low – stream
-- KEYS[4] index – hash, task id to lane letter and entry id
-- KEYS[5] parked – hash, task id to lane, crashes and message
-- KEYS[6] scheduled – sorted set, task id by due time in ms
-- KEYS[7] retry – sorted set, task id by due time in ms
-- KEYS[8] config – hash
-- KEYS[9] archived – sorted set, task id by the time in ms at which it was archived
-- KEYS[10] stats – hash, counters over all time
-- ARGV[1] limit – most tasks to move from each of the two, at most 500
-- RETURNS {moved, orphans, next, paused, unreadable}: tasks moved; ids without a body, dropped; ms until the next is due
--         (0: more are due now, -1: none waits); 1 when the queue is paused, else 0; bodies that make no sense, archived
-- COST about 12 us a task
local lanes = {h = KEYS[1], n = KEYS[2], l = KEYS[3]}
local index, parked, config, limit = KEYS[4], KEYS[5], KEYS[8], tonumber(ARGV[1])
local archived, stats = KEYS[9], KEYS[10]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local moved, orphans, unreadable, next_due = 0, 0, 0, -1

for k = 6, 7 do
  local waiting = KEYS[k]
  local ids = redis.call('ZRANGEBYSCORE', waiting, '-inf', now, 'LIMIT', 0, limit)
  if #ids > 0 then
    -- After a write that needs no memory Redis lets the others pass when memory is full. Scheduled tasks alone may fill
    -- it, and room is made only by running them. No task has an empty id.
    redis.call('HDEL', parked, '')
    local values = redis.call('HMGET', parked, unpack(ids))
    local indexed, kept = {}, {}
    for i, id in ipairs(ids) do
      local value = values[i]
      local colon = value and string.find(value, ':', 1, true)
      local home, crashes = string.match(value and string.sub(value, 1, colon or 0) or '', '^(%a)(%d+)')
      if home and lanes[home] then
        local message = string.sub(value, colon + 1)
        local entry
        if crashes == '0' then
          entry = redis.call('XADD', lanes[home], '*', 'id', id, 'm', message)
        else
          entry = redis.call('XADD', lanes[home], '*', 'id', id, 'm', message, 'c', crashes)
        end
        indexed[#indexed + 1] = id
        indexed[#indexed + 1] = home .. entry
        moved = moved + 1
      elseif value then
        kept[#kept + 1] = {id, value}
      else
        orphans = orphans + 1
      end
    end
    redis.call('ZREM', waiting, unpack(ids))
    redis.call('HDEL', parked, unpack(ids))
    if #indexed > 0 then redis.call('HSET', index, unpack(indexed)) end
    for _, body in ipairs(kept) do
      redis.call('ZADD', archived, now, body[1])
      redis.call('HSET', parked, body[1], 'n0' .. '!undecodable:' .. body[2])
    end
    unreadable = unreadable + #kept
  end
  local head = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
  if head[2] then
    local wait = math.max(0, head[2] - now)
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end

-- A counter at its end starts again rather than fail the script, which could not be rolled back.
local function count(field, by)
  if by > 0 and type(redis.pcall('HINCRBY', stats, field, by)) == 'table' then redis.pcall('HSET', stats, field, by) end
end
count('vanished', orphans)
count('quarantined', unreadable)
return {moved, orphans, next_due, redis.call('HEXISTS', config, 'paused'), unreadable}
