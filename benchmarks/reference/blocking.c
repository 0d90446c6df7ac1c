/* Reads a group with blocking reads, and notes how long after its intended time each entry arrived.
 *
 *   blocking ADDRESS STREAM GROUP CONSUMER COUNT ENTRIES
 *
 * The first field of an entry is the time for which it was intended: nanoseconds of CLOCK_MONOTONIC. Each batch is
 * acked in the same write as the next read. After ENTRIES entries the latencies go to stdout, as 64-bit
 * integers in nanoseconds, in the order of arrival.
 */
#include <stdint.h>
#include <time.h>

#include "common.h"

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int main(int argc, char **arguments)
{
    if (argc != 7)
        fail("usage: blocking ADDRESS STREAM GROUP CONSUMER COUNT ENTRIES");
    redisContext *redis = connect_to(arguments[1]);
    size_t wanted = strtoul(arguments[6], NULL, 10), seen = 0, most = strtoul(arguments[5], NULL, 10);
    int64_t *latencies = malloc(wanted * sizeof *latencies);
    const char **ids = malloc((most + 3) * sizeof *ids);
    if (latencies == NULL || ids == NULL)
        fail("out of memory");
    const char *read[] = {"XREADGROUP", "GROUP", arguments[3], arguments[4], "COUNT", arguments[5],
                          "BLOCK", "0", "STREAMS", arguments[2], ">"};
    ids[0] = "XACK", ids[1] = arguments[2], ids[2] = arguments[3];
    must(redis, redisAppendCommandArgv(redis, 11, read, NULL) == REDIS_OK);
    while (seen < wanted) {
        redisReply *reply = NULL, *acked = NULL;
        must(redis, redisGetReply(redis, (void **)&reply) == REDIS_OK);
        if (reply->type == REDIS_REPLY_ERROR)
            fail(reply->str);
        const redisReply *entries = reply->element[0]->element[1];
        for (size_t at = 0; at < entries->elements && seen < wanted; at++) {
            const redisReply *entry = entries->element[at];
            latencies[seen++] = now_ns() - strtoll(entry->element[1]->element[1]->str, NULL, 10);
            ids[at + 3] = entry->element[0]->str;
        }
        must(redis, redisAppendCommandArgv(redis, (int)entries->elements + 3, ids, NULL) == REDIS_OK);
        if (seen < wanted)
            must(redis, redisAppendCommandArgv(redis, 11, read, NULL) == REDIS_OK);
        must(redis, redisGetReply(redis, (void **)&acked) == REDIS_OK);
        freeReplyObject(acked);
        freeReplyObject(reply);
    }
    redisFree(redis);
    fwrite(latencies, sizeof *latencies, wanted, stdout);
    return 0;
}
