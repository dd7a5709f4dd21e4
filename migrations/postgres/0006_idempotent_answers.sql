-- The answers of requests that their clients may send again. They hold secrets, and are kept encrypted under a key that is
-- derived from what only the client knows.

create table idempotent_answers (
    account_id    uuid not null,
    key_hash      bytea not null check (octet_length(key_hash) = 32),
    request_hash  bytea not null check (octet_length(request_hash) = 32),
    sealed        bytea not null,
    created_at    timestamptz not null,
    primary key (account_id, key_hash)
);

create index idempotent_answers_by_age on idempotent_answers (created_at);
