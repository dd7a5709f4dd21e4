-- How many requests each key has made, by the hour and by the day since 1970 in UTC. A key's counts go with it.

create table usage_by_hour (
    key_id   uuid not null references api_keys (id) on delete cascade,
    hour     bigint not null,
    allowed  bigint not null,
    refused  bigint not null,
    primary key (key_id, hour)
);

create index usage_by_hour_by_age on usage_by_hour (hour);

create table usage_by_day (
    key_id   uuid not null references api_keys (id) on delete cascade,
    day      bigint not null,
    allowed  bigint not null,
    refused  bigint not null,
    primary key (key_id, day)
);

create index usage_by_day_by_age on usage_by_day (day);
