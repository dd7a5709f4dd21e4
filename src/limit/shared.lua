-- Judges one request of one key, and counts it if every window lets it go: in all of them or in none.
--
-- KEYS[1]  The usage of one key: a hash of the plan it was counted under, of the instant from which its minute's bucket is full
--          again, and of how many requests it has made in which clock hour and in which day.
-- ARGV     The plan, and its requests per minute, hour and day; 0 is no such window.
-- Returns  1 if it goes, else 0; the time; when the bucket is full; the hour and the requests made in it; the day and the same.
--
-- Instants are microseconds since the epoch, by this server's clock: replicas need not agree on the time.

local MINUTE, HOUR, DAY = 60000000, 3600000000, 86400000000
-- How much longer than its last window a usage is kept.
local SPARE_MS = 1000

local plan = ARGV[1]
local per_minute, per_hour, per_day = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local usage = redis.call('HMGET', KEYS[1], 'plan', 'full_at', 'hour', 'in_hour', 'day', 'in_day')

local full_at = tonumber(usage[2]) or 0
if full_at > now + MINUTE then
  -- The clock was set back. Nobody is locked out for longer than a bucket takes to fill, counted from now.
  full_at = now + MINUTE
  redis.call('HSET', KEYS[1], 'full_at', string.format('%.0f', full_at))
end
if usage[1] ~= plan then
  -- A bucket is measured against its plan's limit; a key that changes its plan gets a full one.
  full_at = 0
end

-- Windows do not go back, so that a clock set back a little gives nothing away. One from further ahead than the next was counted
-- by a clock that was wrong then, and nobody waits until it comes.
local function enter(length, index, used)
  local current = math.floor(now / length)
  index, used = tonumber(index) or 0, tonumber(used) or 0
  if current > index or current + 1 < index then
    return current, 0
  end
  return index, used
end

local hour, in_hour = enter(HOUR, usage[3], usage[4])
local day, in_day = enter(DAY, usage[5], usage[6])

local goes = (per_hour == 0 or in_hour < per_hour) and (per_day == 0 or in_day < per_day)
if per_minute > 0 and goes then
  -- The generic cell rate algorithm: each request moves the instant on by what one token takes to come back.
  local token = math.max(1, math.floor(MINUTE / per_minute))
  local next_full_at = math.max(full_at, now) + token
  goes = next_full_at <= now + token * per_minute
  if goes then
    full_at = next_full_at
  end
end

if goes then
  in_hour, in_day = in_hour + 1, in_day + 1
  redis.call('HSET', KEYS[1], 'plan', plan, 'full_at', string.format('%.0f', full_at),
    'hour', hour, 'in_hour', in_hour, 'day', day, 'in_day', in_day)
  local ends = math.max(full_at, now)
  if per_hour > 0 then
    ends = math.max(ends, (hour + 1) * HOUR)
  end
  if per_day > 0 then
    ends = math.max(ends, (day + 1) * DAY)
  end
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', (ends - now) / 1000 + SPARE_MS))
end

return {goes and 1 or 0, now, full_at, hour, in_hour, day, in_day}
