-- Looks for index records that point to no entry: such a task is gone, and its id is made free again.
-- EDGE none
-- KEYS[1] front – stream
-- KEYS[2] high – stream
-- KEYS[3] normal – stream
-- KEYS[4] low – stream
-- KEYS[5] index – hash, task id to lane letter and entry id
-- KEYS[6] stats – hash, counters over all time
-- KEYS[7] day – hash, counters of this UTC day
-- ARGV[1] cursor – where to go on, "0 0" to begin
-- ARGV[2] limit – about how many records to look at
-- ARGV[3] budget – bytes of messages after which to stop
-- RETURNS {cursor, vanished, repaired, quarantined}: where to go on (empty: all are searched); records removed, 0, 0
-- COST about 3 us a record; entries are copied to look at them, hence the budget
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local index, stats, day, limit, budget = KEYS[5], KEYS[6], KEYS[7], ARGV[2], tonumber(ARGV[3])
-- Redis hands a small hash out whole, whatever the limit: then the second number says how far it was searched.
local scan, skip = string.match(ARGV[1], '^(%d+) (%d+)$')
local page = redis.call('HSCAN', index, scan, 'COUNT', limit)
local vanished, stop = 0, nil

for i = 1 + 2 * skip, #page[2], 2 do
  local id, place = page[2][i], page[2][i + 1]
  local lane, entry = lanes[string.sub(place, 1, 1)], string.match(place, '^%a(%d+%-%d+)$')
  local found = lane and entry and redis.call('XRANGE', lane, entry, entry)[1]
  if found then
    for k = 1, #found[2] do budget = budget - #found[2][k] end
  else
    redis.call('HDEL', index, id)
    vanished = vanished + 1
  end
  if budget < 0 and i + 2 <= #page[2] then
    stop = scan .. ' ' .. string.format('%d', (i + 1) / 2 - vanished)
    break
  end
end

local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
if vanished > 0 then
  count(stats, 'vanished', vanished)
  count(day, 'vanished', vanished)
  redis.pcall('EXPIRE', day, 7776000)
end
return {stop or (page[1] == '0' and '' or page[1] .. ' 0'), vanished, 0, 0}
