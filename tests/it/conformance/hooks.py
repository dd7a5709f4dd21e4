"""What schemathesis must know of the service beyond its description: loaded by it, see `tests/it/conformance.rs`."""

import os

import requests
import schemathesis

OPERATOR = os.environ["MOMAIL_API_KEY"]
PERMISSIONS = os.environ["MOMAIL_PERMISSIONS"].split()
SPENT_BY_USE = "DELETE /v1/api-keys/current"


@schemathesis.auth(refresh_interval=None, retry_on=[])
class ApiKey:
    """One key for the whole run, but for the request that ends its own: that gets one made for it."""

    def get(self, case, context):
        if case.operation.label != SPENT_BY_USE:
            return OPERATOR
        url = case.operation.schema.get_base_url().rstrip("/") + "/v1/api-keys"
        answer = requests.post(url, json={"name": "spent"}, headers={"X-API-Key": OPERATOR}, timeout=10)
        answer.raise_for_status()
        return answer.json()["data"]["apiKey"]

    def set(self, case, data, context):
        case.headers = case.headers or {}
        case.headers["X-API-Key"] = data


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Which permissions there are is a setting, so the description cannot list them."""
    for body in ("CreateKey", "EditKey"):
        permissions = raw_schema["components"]["schemas"][body]["properties"]["permissions"]
        permissions["items"]["enum"] = PERMISSIONS


@schemathesis.hook
def filter_body(context, body):
    """To JSON Schema 30.0 is an integer. To the service it is none: nobody writes a number of days so but by mistake."""
    values = body.values() if isinstance(body, dict) else []
    return not any(isinstance(value, float) and value.is_integer() for value in values)
