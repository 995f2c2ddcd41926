-- Gives tasks of one lane back unfinished: each is issued again at the front, nothing spent.
-- EDGE active -> ready
-- KEYS[1] lane – stream that holds the entries
-- KEYS[2] front – stream that gets them; may be the same
-- KEYS[3] index – hash, task id to lane letter and entry id
-- KEYS[4] cancels – hash, lane letter and entry id to mark
-- ARGV[1] letter – lane letter of KEYS[1]
-- ARGV[2...] entry ids
-- RETURNS one word per task, separated by spaces: ok; lost; or cancelled: and the mark of a task that is to be settled as
--         that mark says instead (nothing was done)
-- COST about 12 us a task; at most 500 tasks a call, held by the caller
local lane, front, index, cancels, letter = KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1]
local words = {}
local marked = redis.call('EXISTS', cancels) == 1

for i = 2, #ARGV do
  local entry = ARGV[i]
  local found = redis.call('XRANGE', lane, entry, entry)[1]
  local mark = marked and redis.call('HGET', cancels, letter .. entry)
  if mark then
    words[#words + 1] = 'cancelled:' .. mark
  elseif redis.call('XACK', lane, 'w', entry) == 1 and found then
    local f = {}
    for k = 1, #found[2], 2 do f[found[2][k]] = found[2][k + 1] end
    -- An entry that is no task goes on as one without a message, which a worker archives.
    local id, message = f.id or entry, f.m or ''
    redis.call('XDEL', lane, entry)
    local fresh = redis.call('XADD', front, '*', 'id', id, 'm', message, 'l', f.l or letter, 'c', f.c or '0')
    redis.call('HSET', index, id, 'f' .. fresh)
    words[#words + 1] = 'ok'
  else
    words[#words + 1] = 'lost'
  end
end
return table.concat(words, ' ')
