-- Counts one request of one key, with as many and as large commands as the service's own script.
--
-- KEYS[1] is a hash; ARGV has the plan and its requests per minute, hour and day.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local usage = redis.call('HMGET', KEYS[1], 'plan', 'full_at', 'hour', 'in_hour', 'day', 'in_day')

local full_at = math.max(tonumber(usage[2]) or 0, now) + math.floor(60000000 / ARGV[2])
local in_hour, in_day = (tonumber(usage[4]) or 0) + 1, (tonumber(usage[6]) or 0) + 1
local hour, day = math.floor(now / 3600000000), math.floor(now / 86400000000)
local goes = full_at <= now + 60000000 and in_hour <= tonumber(ARGV[3]) and in_day <= tonumber(ARGV[4])
if goes then
  redis.call('HSET', KEYS[1], 'plan', ARGV[1], 'full_at', string.format('%.0f', full_at),
    'hour', hour, 'in_hour', in_hour, 'day', day, 'in_day', in_day)
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', (day + 1) * 86400000 - now / 1000))
end

return {goes and 1 or 0, now, full_at, hour, in_hour, day, in_day}
