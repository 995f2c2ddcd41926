-- Pauses or resumes a queue: a paused queue hands nothing out, whoever reads.
-- EDGE none
-- KEYS[1] config – hash
-- KEYS[2] front – stream
-- KEYS[3] high – stream
-- KEYS[4] normal – stream
-- KEYS[5] low – stream
-- ARGV[1] verb, pause or resume
-- ARGV[2] hints – channel
-- RETURNS a word: ok, already (nothing to change)
-- COST constant
local config, verb = KEYS[1], ARGV[1]
local lanes = {f = KEYS[2], h = KEYS[3], n = KEYS[4], l = KEYS[5]}
local LAST = '18446744073709551615-18446744073709551615'

-- After a write that needs no memory Redis lets the others pass when memory is full: then a pause is wanted most.
redis.call('HDEL', config, '')

-- The id up to which the group of a lane has been handed out; a lane that nobody has read yet gets its group now, or a
-- worker that comes would create it at the beginning and be handed everything.
local function handed_out(lane)
  redis.pcall('XGROUP', 'CREATE', lane, 'w', '0', 'MKSTREAM')
  local groups = redis.pcall('XINFO', 'GROUPS', lane)
  -- A key of another type hands nothing out: the other lanes are paused all the same.
  if groups.err then return nil end
  for _, group in ipairs(groups) do
    local f = {}
    for k = 1, #group, 2 do f[group[k]] = group[k + 1] end
    if f.name == 'w' then return f['last-delivered-id'] end
  end
end

if verb == 'pause' then
  local time = redis.call('TIME')
  if redis.call('HSETNX', config, 'paused', time[1] * 1000 + math.floor(time[2] / 1000)) == 0 then return 'already' end
  -- A group at the greatest id there is has nothing to come: new entries and re-issued ones stay in the lane.
  for letter, lane in pairs(lanes) do
    local last = handed_out(lane)
    if last and last ~= LAST then redis.call('HSET', config, 'last:' .. letter, last) end
    if last then redis.call('XGROUP', 'SETID', lane, 'w', LAST) end
  end
else
  if redis.call('HDEL', config, 'paused') == 0 then return 'already' end
  for letter, lane in pairs(lanes) do
    local last = redis.call('HGET', config, 'last:' .. letter)
    if not last then
      -- Somebody lost it. What was handed out lately is still active, or deleted.
      local active = redis.pcall('XPENDING', lane, 'w')
      last = not active.err and active[3] or '0-0'
    end
    -- A lane that was deleted meanwhile has none; a worker creates it at the beginning.
    redis.pcall('XGROUP', 'SETID', lane, 'w', last)
    redis.call('HDEL', config, 'last:' .. letter)
  end
end
redis.pcall('PUBLISH', ARGV[2], verb)
return 'ok'
