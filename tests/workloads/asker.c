/* asker: counts, and asks for its own checkpoint at each 1000 (native/self/ckpt_self.h). Says "GENERATION n COUNT c SUM s" each time it comes
 * back from that, and goes on with each line that it is told.
 */
#include "../../native/self/ckpt_self.c"
#include "victim.h"

static void *beside(void *nothing) {
    for (;;)
        pause();
    return nothing;
}

int main(void) {
    uint64_t sum = 0;
    pthread_t other;
    need(pthread_create(&other, NULL, beside, NULL) == 0, "pthread_create");
    ready();
    for (uint64_t count = 1;; count++) {
        sum = mix(sum, count);
        if (count % 1000)
            continue;
        long generation = ckpt_checkpoint_self();
        say("GENERATION %ld COUNT %lu SUM %lx", generation, count, sum);
        question();
    }
}
