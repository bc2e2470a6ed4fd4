-- What wrk sends: a charge to a random account, so that few wait for the same row.
-- Arguments: which keys ("none", "fresh", "known"), a number that makes this run's requests its own, and how many known keys there are.

local ACCOUNTS = 10000
local sent = 0
local keys, known

function init(args)
  keys = args[1]
  math.randomseed(tonumber(args[2]))
  known = tonumber(args[3])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end

local function uuid()
  local random = math.random
  return string.format("%04x%04x-%04x-4%03x-8%03x-%04x%04x%04x",
    random(0, 65535), random(0, 65535), random(0, 65535), random(0, 4095), random(0, 4095),
    random(0, 65535), random(0, 65535), random(0, 65535))
end

function request()
  local account
  if keys == "known" then
    -- The same request whenever the key is the same.
    account = sent % known + 1
    sent = sent + 1
    wrk.headers["Idempotency-Key"] = string.format('"known-%d"', account)
  else
    account = math.random(ACCOUNTS)
    if keys == "fresh" then
      wrk.headers["Idempotency-Key"] = '"' .. uuid() .. '"'
    end
  end
  return wrk.format(nil, nil, nil, string.format('{"account":%d,"amount":42}', account))
end

function done(summary, latency)
  local failed = summary.errors
  io.write(string.format('{"requests":%d,"microseconds":%d,"errors":%d,"p50":%f,"p99":%f}\n',
    summary.requests, summary.duration,
    failed.connect + failed.read + failed.write + failed.status + failed.timeout,
    latency:percentile(50), latency:percentile(99)))
end
