-- One member says what it needs. The script renews it, grants it tokens, and asks it for those that others need.
--
-- KEYS: the books (a hash), and three sorted sets of members: by the end of their time-to-live, by the tokens that
-- they hold, and, of those that need more, by the time until which this is believed.
-- All times are milliseconds of the server's clock.
local books, ends, held, hungry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local member, is_leaving = ARGV[1], ARGV[2] == "1"
local turn, want, has, claim = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local total, floor, ttl = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local HUNGRY_FOR = 1000
local MOST_NAMES = 20

local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function score(set, name)
    return tonumber(redis.call("ZSCORE", set, name)) or 0
end

-- The sums are kept rather than counted, so that a call does not depend on the number of members.
local SUMS = { "used", "seen", "grace", "hungry", "lacking" }
local own_turn = "turn:" .. member
local known = redis.call("HMGET", books, "total", "ttl", own_turn, unpack(SUMS))
local sum = {}
for index, name in ipairs(SUMS) do
    sum[name] = tonumber(known[index + 3])
end

-- While Redis was away, or after it has lost what it knew, members hold tokens that the books no longer show. For
-- one time-to-live each member keeps what it holds, or says what it holds, and none is granted more.
if not sum.seen or redis.call("ZCARD", ends) ~= redis.call("ZCARD", held) then
    redis.call("DEL", books, ends, held, hungry)
    known, sum = {}, { used = 0, grace = now + ttl, hungry = 0, lacking = 0 }
elseif math.abs(now - sum.seen) > ttl / 3 and redis.call("ZCARD", ends) > 0 then
    sum.grace = now + ttl
    for _, name in ipairs(redis.call("ZRANGEBYSCORE", ends, now + ttl, "+inf")) do -- the clock was set back
        redis.call("ZADD", ends, now + ttl, name)
    end
end
local is_grace = now < sum.grace

local function sate(name)
    if redis.call("ZREM", hungry, name) == 1 then
        sum.hungry = sum.hungry - score(held, name)
        sum.lacking = sum.lacking - tonumber(redis.call("HGET", books, "lacks:" .. name))
        redis.call("HDEL", books, "lacks:" .. name)
    end
end

local function forget(name)
    sate(name)
    sum.used = sum.used - score(held, name)
    redis.call("ZREM", held, name)
    redis.call("ZREM", ends, name)
    redis.call("HDEL", books, "turn:" .. name)
end

local function save(...)
    redis.call(
        "HSET", books, "used", sum.used, "seen", now, "grace", sum.grace, "hungry", sum.hungry, "lacking", sum.lacking,
        ...
    )
end

if not is_grace then
    for _, name in ipairs(redis.call("ZRANGEBYSCORE", ends, "-inf", now)) do
        forget(name)
    end
end
for _, name in ipairs(redis.call("ZRANGEBYSCORE", hungry, "-inf", now)) do
    sate(name)
end

-- Members that disagree.
if known[1] and (tonumber(known[1]) ~= total or tonumber(known[2]) ~= ttl) then
    for _, name in ipairs(redis.call("ZRANGE", ends, 0, 1)) do
        if name ~= member then
            save()
            return { "disagrees", known[1], known[2], name }
        end
    end
end

-- A call that was under way for so long that a later one has come first.
if turn <= (tonumber(known[3]) or 0) then
    save()
    return { "late" }
end

-- What the member has given back is free before it gets more. The level is what each of those that need more would
-- hold, this member with them, if they shared evenly.
sate(member)
local before = score(held, member)
local mine = math.min(before, has)
local free = total - sum.used + before - mine
local others, lacking = redis.call("ZCARD", hungry), sum.lacking
local level = math.max(floor, math.ceil((free + sum.hungry + mine) / (others + 1)))
local most = is_grace and claim or level
local granted = math.max(0, math.min(want, math.max(mine, most), mine + free))
sum.used = sum.used + granted - before

local asked = 0
redis.call("ZADD", held, granted, member)
if is_leaving then
    forget(member)
    save("total", total, "ttl", ttl)
else
    redis.call("ZADD", ends, now + ttl, member)
    local keeps = floor
    if want > granted then
        redis.call("ZADD", hungry, now + HUNGRY_FOR, member)
        redis.call("HSET", books, "lacks:" .. member, want - granted)
        sum.hungry = sum.hungry + granted
        sum.lacking = sum.lacking + want - granted
        keeps = level
    end
    if not is_grace then
        asked = math.max(0, math.min(lacking - (total - sum.used), granted - keeps))
    end
    save("total", total, "ttl", ttl, own_turn, turn)
end
return {
    "granted", granted, asked, level, sum.used, redis.call("ZCARD", ends), math.max(0, sum.grace - now),
    unpack(redis.call("ZREVRANGE", held, 0, MOST_NAMES - 1, "WITHSCORES")),
}
