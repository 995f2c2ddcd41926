-- Looks for entries that the index does not know, if there are fewer records than entries: they get one.
-- EDGE lost -> ready
-- EDGE lost -> archived
-- KEYS[1] front – stream
-- KEYS[2] high – stream
-- KEYS[3] normal – stream
-- KEYS[4] low – stream
-- KEYS[5] index – hash, task id to lane letter and entry id
-- KEYS[6] parked – hash, task id to lane, crashes and message
-- KEYS[7] archived – sorted set, task id by the time in ms at which it was archived
-- KEYS[8] stats – hash, counters over all time
-- KEYS[9] day – hash, counters of this UTC day
-- ARGV[1] letter – of the lane that is searched
-- ARGV[2] cursor – where to go on, - to begin
-- ARGV[3] limit – most entries to look at, at most 100
-- RETURNS {cursor, vanished, repaired, quarantined}: where to go on (empty: the lane is searched, or every entry has a
--         record); 0; records made; entries archived, because their task is elsewhere too
-- COST constant when there are as many records as entries; else about 4 us an entry, and what copying messages takes
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local index, parked, archived, stats, day = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local letter, cursor, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lane = lanes[letter]
local entries = 0
for _, one in pairs(lanes) do entries = entries + redis.call('XLEN', one) end
if redis.call('HLEN', index) >= entries then return {'', 0, 0, 0} end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local page = redis.call('XRANGE', lane, cursor, '+', 'COUNT', limit)
local repaired, quarantined = 0, 0
for _, row in ipairs(page) do
  local entry, f = row[1], {}
  for k = 1, #row[2], 2 do f[row[2][k]] = row[2][k + 1] end
  local id = f.id or entry
  local place = redis.call('HGET', index, id)
  if place ~= letter .. entry then
    local pending = redis.pcall('XPENDING', lane, 'w', entry, entry, 1)
    local active = not pending.err and #pending > 0
    if not place and (active or redis.call('HEXISTS', parked, id) == 0) then
      redis.call('HSET', index, id, letter .. entry)
      repaired = repaired + 1
    elseif not active then
      -- Two of one task: the other one is known, so this one is kept to be looked at, under a name of its own. One that
      -- a worker holds goes when that has ended.
      redis.call('XDEL', lane, entry)
      redis.call('ZADD', archived, now, letter .. entry)
      redis.call('HSET', parked, letter .. entry, (f.l or letter) .. (f.c or '0') .. '!orphaned:' .. (f.m or ''))
      quarantined = quarantined + 1
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
