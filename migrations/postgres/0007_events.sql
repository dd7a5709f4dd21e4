-- Who changed what, when and from where. A row is written in the transaction of its change, and stays as it is.

create table events (
    id          bigint generated always as identity primary key,
    account_id  uuid not null,
    key_id      uuid,
    event       text not null,
    detail      text,
    at          timestamptz not null,
    by_key      uuid,
    address     text,
    request_id  text
);

create index events_of_account on events (account_id, id desc);
create index events_by_age on events (at);

-- What is older than this may be removed, and nothing else.
create table event_retention (
    only_row   boolean primary key default true check (only_row),
    before_at  timestamptz not null
);

insert into event_retention (before_at) values ('1970-01-01T00:00:00Z');

create function keep_event() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' and old.at < (select before_at from event_retention) then
        return old;
    end if;
    raise exception 'events are kept as they are';
end
$$;

create trigger event_kept before update or delete on events
    for each row execute function keep_event();
create trigger events_kept before truncate on events
    for each statement execute function keep_event();
