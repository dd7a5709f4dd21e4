-- Forward auth for HAProxy: asks momail-api-keys whether a request may go on.
-- Sets X-Key-Id and its like on the request, and the variable
-- txn.momail_allowed; or answers with the service's refusal.

-- For each attempt: HAProxy asks again by itself, up to three times.
local TIMEOUT_MS = 1000

-- Sent along as the client wrote them, however often they are there.
local ASKED_WITH = { "x-api-key", "authorization", "x-request-id" }
-- Always in the answer, empty if unknown, so that a forged one is overwritten.
local IDENTITY = { "X-Key-Id", "X-Account-Id", "X-Plan", "X-Key-Prefix", "X-Permissions" }
local REFUSED_WITH = {
    "content-type", "cache-control", "www-authenticate", "retry-after", "x-request-id", "x-ratelimit-limit",
    "x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit", "ratelimit-policy",
}

local UNAVAILABLE = '{"success":false,"error":{"code":"SERVICE_UNAVAILABLE",'
    .. '"message":"The service cannot answer now. Try again shortly."}}'

-- HAProxy counts a header's values from 0, and wants lists from 1.
local function values(of_header)
    local list = {}
    for at = 0, #(of_header or {}) do
        if of_header and of_header[at] then
            list[#list + 1] = of_header[at]
        end
    end
    return list
end

local function unavailable(txn)
    txn:done(txn:reply {
        status = 503,
        headers = { ["content-type"] = { "application/json" }, ["retry-after"] = { "1" } },
        body = UNAVAILABLE,
    })
end

local function refuse(txn, response)
    local headers = {}
    for _, name in ipairs(REFUSED_WITH) do
        local list = values(response.headers[name])
        if #list > 0 then
            headers[name] = list
        end
    end
    txn:done(txn:reply { status = response.status, headers = headers, body = response.body })
end

core.register_action("momail_auth", { "http-req" }, function(txn, url)
    local theirs = txn.http:req_get_headers()
    local headers = {
        ["x-forwarded-method"] = { txn.sf:method() },
        ["x-forwarded-uri"] = { txn.sf:url() },
        ["x-forwarded-for"] = { txn.sf:src() },
    }
    for _, name in ipairs(ASKED_WITH) do
        local list = values(theirs[name])
        if #list > 0 then
            headers[name] = list
        end
    end

    local response = core.httpclient():get { url = url, headers = headers, timeout = TIMEOUT_MS }
    if response and response.status == 200 then
        for _, name in ipairs(IDENTITY) do
            local value = response.headers[name:lower()]
            txn.http:req_set_header(name, value and value[0] or "")
        end
        txn:set_var("txn.momail_allowed", true)
    elseif response and response.status >= 400 and response.status < 500 then
        refuse(txn, response)
    else
        unavailable(txn)
    end
end, 1)
