/* family: a parent and three children in a ring of pipes, with several messages on the way at any time. Each member
 * mixes its own count into the message, and the parent knows what must come back: a message that is lost, doubled or out
 * of order, or a child whose memory does not fit the others' shows at once.
 */
#include "ring.h"

enum { CHILDREN = 3, WINDOW = 40 };
struct message {
    uint64_t sequence, hash, padding[30];
};

static void child(int me, int in, int out) {
    struct message message;
    for (uint64_t count = 0;; count++) {
        get_bytes(in, &message, sizeof message);
        if (victim_reason[0] || message.sequence != count || message.padding[count % 30] != mix(message.sequence, count % 30))
            message.hash = 0xBAD;
        message.hash = mix(message.hash, count * CHILDREN + (uint64_t)me);
        if (count % 8 == 0)
            usleep(300);
        put_bytes(out, &message, sizeof message);
    }
}

int main(void) {
    int pipes[CHILDREN + 1][2];
    for (int i = 0; i <= CHILDREN; i++)
        need(pipe(pipes[i]) == 0, "pipe");
    for (int i = 0; i < CHILDREN; i++)
        if (fork() == 0) {
            for (int j = 0; j <= CHILDREN; j++) {
                if (j != i)
                    close(pipes[j][0]);
                if (j != i + 1)
                    close(pipes[j][1]);
            }
            close(0);
            child(i, pipes[i][0], pipes[i + 1][1]);
        }
    close(pipes[0][0]);
    for (int i = 1; i <= CHILDREN; i++)
        close(pipes[i][1]);
    uint64_t sent = 0, due = 0;
    for (uint64_t received = 0;; received++) {
        struct message message;
        for (; sent < received + WINDOW; sent++) {
            message.sequence = sent;
            message.hash = sent;
            for (uint64_t i = 0; i < 30; i++)
                message.padding[i] = mix(sent, i);
            put_bytes(pipes[0][1], &message, sizeof message);
        }
        get_bytes(pipes[CHILDREN][0], &message, sizeof message);
        uint64_t hash = received;
        for (uint64_t i = 0; i < CHILDREN; i++)
            hash = mix(hash, received * CHILDREN + i);
        if (message.sequence != received || message.hash != hash)
            wrong("message %lu came back as %lu, its hash is %s", received, message.sequence, message.hash == hash ? "right" : "wrong");
        if (received == 100)
            ready();
        if (!due && received % 16 == 0 && received > 100 && asked(0))
            due = received + 3 * WINDOW; /* what is on the way now must have come round */
        if (due && received >= due) {
            due = 0;
            answer();
        }
    }
}
