/* What the C programs share: connecting, and ending with a message when something fails. */
#ifndef COMMON_H
#define COMMON_H

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static inline void must(redisContext *redis, int succeeded)
{
    if (!succeeded)
        fail(redis->errstr);
}

/* ADDRESS is a path of a unix socket, or host:port. */
static inline redisContext *connect_to(char *address)
{
    redisContext *redis;
    char *port = strrchr(address, ':');
    if (address[0] == '/' || port == NULL)
        redis = redisConnectUnix(address);
    else {
        *port = '\0';
        redis = redisConnect(address, atoi(port + 1));
    }
    if (redis == NULL)
        fail("out of memory");
    must(redis, redis->err == 0);
    return redis;
}

#endif
