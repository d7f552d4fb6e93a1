/* Time: absolute moments of the monotonic clock, so that a schedule does not drift. */
#define _GNU_SOURCE
#include "model.h"

#include <time.h>

#define TICK_NS 10000000L /* an abort is seen within this time */

long long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Wait for a moment of the schedule, counted from its beginning and not from now, so that errors do not add up; false when aborted: within
 * a tick, or at that moment when the script says that what is being computed is computed to its end. */
bool wait_until(struct model *model, long long due)
{
    for (;;) {
        bool aborted = atomic_load(&model->aborted);
        long long now = now_ns();
        if (aborted && (!model->script.abort_at_token || now >= due))
            return false;
        if (now >= due)
            return true;
        long long next = due - now > TICK_NS ? now + TICK_NS : due;
        struct timespec moment = {next / 1000000000LL, next % 1000000000LL};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &moment, NULL))
            ;
    }
}

void sleep_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&time, &time))
        ;
}

void crash(void)
{
    *(volatile int *volatile)NULL = 0;
}
