/* A wall clock that somebody else sets: preloaded into the fleet's processes, it adds to the true time the seconds that
 * the file FLEET_STORM_CLOCK has in its first eight bytes. The monotonic clock stays true, as it does on a machine whose
 * clock is set. Absolute deadlines by the wall clock are given to the kernel in true time, as the kernel would mend them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t none = 0;
static const volatile int64_t *ahead = &none;
static int (*true_gettime)(clockid_t, struct timespec *);
static int (*true_cond)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*true_sem)(sem_t *, const struct timespec *);
static long (*true_syscall)(long, ...);

__attribute__((constructor)) static void begin(void)
{
    true_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    true_cond = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!true_cond)
        true_cond = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    true_sem = (int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait");
    true_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    const char *path = getenv("FLEET_STORM_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *seen = mmap(0, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (seen != MAP_FAILED)
        ahead = seen;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (!true_gettime)
        begin();
    int failed = true_gettime(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *ahead;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec fine;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *told)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (told)
        *told = now.tv_sec;
    return now.tv_sec;
}

/* Years since 1970, so not since the machine began: a deadline by the wall clock. */
static const struct timespec *in_true_time(const struct timespec *deadline, struct timespec *place)
{
    if (!deadline || deadline->tv_sec < 1000000000)
        return deadline;
    *place = *deadline;
    place->tv_sec -= *ahead;
    return place;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline)
{
    struct timespec place;
    if (!true_cond)
        begin();
    return true_cond(condition, mutex, in_true_time(deadline, &place));
}

int sem_timedwait(sem_t *semaphore, const struct timespec *deadline)
{
    struct timespec place;
    if (!true_sem)
        begin();
    return true_sem(semaphore, in_true_time(deadline, &place));
}

long syscall(long number, ...)
{
    long given[6];
    struct timespec place;
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        given[i] = va_arg(rest, long);
    va_end(rest);
    if (!true_syscall)
        begin();
    if (number == SYS_futex && (given[1] & FUTEX_CLOCK_REALTIME))
        given[3] = (long)in_true_time((const struct timespec *)given[3], &place);
    return true_syscall(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}
