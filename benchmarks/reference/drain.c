/* Drains a group: reads and acks, nothing else. The rate at which Redis can hand out entries and take them back.
 *
 *   drain ADDRESS STREAM GROUP CONSUMER COUNT
 *
 * ADDRESS is a path of a unix socket, or host:port. Two batches are in flight: each write holds one variadic XACK
 * for the batch that was just read and the XREADGROUP for the batch after the next. Leaves when nothing is left.
 */
#include <hiredis/hiredis.h>

#include "common.h"

enum { IN_FLIGHT = 2 };

static void read_more(redisContext *redis, char **arguments, const char *count)
{
    const char *words[] = {"XREADGROUP", "GROUP", arguments[3], arguments[4], "COUNT", count, "STREAMS", arguments[2], ">"};
    must(redis, redisAppendCommandArgv(redis, 9, words, NULL) == REDIS_OK);
}

static void ack(redisContext *redis, char **arguments, const redisReply *entries)
{
    size_t count = entries->elements + 3;
    const char **words = malloc(count * sizeof *words);
    size_t *lengths = malloc(count * sizeof *lengths);
    if (words == NULL || lengths == NULL)
        fail("out of memory");
    words[0] = "XACK", words[1] = arguments[2], words[2] = arguments[3];
    for (size_t at = 0; at < 3; at++)
        lengths[at] = strlen(words[at]);
    for (size_t at = 0; at < entries->elements; at++) {
        words[at + 3] = entries->element[at]->element[0]->str;
        lengths[at + 3] = entries->element[at]->element[0]->len;
    }
    must(redis, redisAppendCommandArgv(redis, (int)count, words, lengths) == REDIS_OK);
    free(words);
    free(lengths);
}

static redisReply *reply_of(redisContext *redis)
{
    redisReply *reply = NULL;
    must(redis, redisGetReply(redis, (void **)&reply) == REDIS_OK);
    if (reply->type == REDIS_REPLY_ERROR)
        fail(reply->str);
    return reply;
}

int main(int argc, char **arguments)
{
    if (argc != 6)
        fail("usage: drain ADDRESS STREAM GROUP CONSUMER COUNT");
    redisContext *redis = connect_to(arguments[1]);
    int reads = 0, acks = 0;
    for (; reads < IN_FLIGHT; reads++)
        read_more(redis, arguments, arguments[5]);
    /* The replies come as the commands were sent: the first reads, then an ack and a read for each batch. */
    int leading = IN_FLIGHT;
    while (reads > 0) {
        if (leading > 0)
            leading--;
        else if (acks > 0) {
            freeReplyObject(reply_of(redis));
            acks--;
        }
        redisReply *reply = reply_of(redis);
        reads--;
        if (reply->type == REDIS_REPLY_ARRAY && reply->elements > 0) {
            ack(redis, arguments, reply->element[0]->element[1]);
            read_more(redis, arguments, arguments[5]);
            acks++, reads++;
        }
        freeReplyObject(reply);
    }
    redisFree(redis);
    return 0;
}
