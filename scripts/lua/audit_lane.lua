-- Looks for entries of one lane that were handed out and are nobody's: their tasks are issued again.
-- EDGE lost -> ready
-- EDGE lost -> archived
-- KEYS[1] lane – stream that is searched
-- KEYS[2] front – stream that gets the tasks again; may be the same
-- KEYS[3] index – hash, task id to lane letter and entry id
-- KEYS[4] parked – hash, task id to lane, crashes and message
-- KEYS[5] archived – sorted set, task id by the time in ms at which it was archived
-- KEYS[6] config – hash
-- KEYS[7] stats – hash, counters over all time
-- KEYS[8] day – hash, counters of this UTC day
-- ARGV[1] letter – lane letter of KEYS[1]
-- ARGV[2] cursor – where to go on, - to begin
-- ARGV[3] limit – most entries to look at, at most 100
-- RETURNS {cursor, vanished, repaired, quarantined}: where to go on (empty: the lane is searched); 0; tasks issued again;
--         entries archived, because their task is elsewhere too
-- COST about 4 us an entry, and what copying the messages takes
local lane, front, index, parked, archived, config, stats, day =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local letter, cursor, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local GREATEST = '18446744073709551615-18446744073709551615'

-- A lane without a group has handed nothing out.
local last = nil
local groups = redis.pcall('XINFO', 'GROUPS', lane)
if groups.err then
  if string.find(groups.err, 'no such key', 1, true) then return {'', 0, 0, 0} end
  return redis.error_reply(groups.err)
end
for _, group in ipairs(groups) do
  local f = {}
  for k = 1, #group, 2 do f[group[k]] = group[k + 1] end
  if f.name == 'w' then last = f['last-delivered-id'] end
end
-- In a paused queue the group stands at the greatest id, and where it was is kept.
if last == GREATEST then last = redis.call('HGET', config, 'last:' .. letter) end
if not last then return {'', 0, 0, 0} end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local page = redis.call('XRANGE', lane, cursor, last, 'COUNT', limit)
local repaired, quarantined = 0, 0
for _, row in ipairs(page) do
  local entry = row[1]
  if #redis.call('XPENDING', lane, 'w', entry, entry, 1) == 0 then
    local f = {}
    for k = 1, #row[2], 2 do f[row[2][k]] = row[2][k + 1] end
    local id, home, crashes, message = f.id or entry, f.l or letter, f.c or '0', f.m or ''
    local place = redis.call('HGET', index, id)
    local elsewhere = (place and place ~= letter .. entry) or redis.call('HEXISTS', parked, id) == 1
    redis.call('XDEL', lane, entry)
    if elsewhere then
      -- Two entries of one task: the other one is known, so this one is kept to be looked at, under a name of its own.
      redis.call('ZADD', archived, now, letter .. entry)
      redis.call('HSET', parked, letter .. entry, home .. crashes .. '!orphaned:' .. message)
      quarantined = quarantined + 1
    else
      local fresh = redis.call('XADD', front, '*', 'id', id, 'm', message, 'l', home, 'c', crashes)
      redis.call('HSET', index, id, 'f' .. fresh)
      repaired = repaired + 1
    end
  end
end

local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
if repaired + quarantined > 0 then
  for field, by in pairs({repaired = repaired, quarantined = quarantined}) do
    count(stats, field, by)
    count(day, field, by)
  end
  redis.pcall('EXPIRE', day, 7776000)
end
return {#page == limit and '(' .. page[#page][1] or '', 0, repaired, quarantined}
