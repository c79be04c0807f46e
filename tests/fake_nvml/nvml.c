/* A stand-in for libnvidia-ml.so.1: the driver's own function names over a machine described in a text file.
 *
 * The unmodified nvidia-ml-py loads it when LD_LIBRARY_PATH leads to it. $FAKE_NVML_MACHINE names the description that
 * machine.py writes, one fact a line; a fact that is not there makes its call answer NOT_SUPPORTED, as an old card would.
 * Structures and numbers follow nvml.h.
 *
 * $FAKE_NVML_CALLS names a file that nvmlShutdown writes: one line "function calls nanoseconds" for each function called.
 */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MAX_GPUS = 64, MAX_LINKS = 18, MAX_PROCESSES = 8, MAX_SLICES = 8, MAX_FAULTS = 64, MAX_FUNCTIONS = 64 };
enum { CPU_WORDS = 16, KINDS = 4, MAX_STEPS = 32, UNKNOWN = -1, HANG = 10001, CRASH = 10002 };

typedef unsigned long long u64;

struct process { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; };
struct name { unsigned pid; char name[64]; };

struct device {
    int index, is_slice, slices, processes, graphics, clients;
    char name[96], uuid[96], bus_id[32];
    long long total, used;
    int major, minor, numa, utilization, mig_mode, display, compute_mode, cores, clock, generation, width, generation_now,
        width_now, ecc, ecc_uncorrected, row_pending, row_failed, retired_pending, throttle, milliwatts, temperature, instance,
        compute_instance, recovery, pcie_replays, bad_link, fabric, fabric_status, fabric_clique, fabric_health;
    unsigned char fabric_cluster[16];
    int step, steps, utilizations[MAX_STEPS]; /* one after the other, the last one for ever */
    long long pcie_rate[2], pcie_start, pcie_kb_s[2], nvlink_rate[2], energy[2];
    int nvlink_each;
    u64 cpus[CPU_WORDS];
    struct process process[MAX_PROCESSES], drawing[MAX_PROCESSES], client[MAX_PROCESSES];
    struct device *slice[MAX_SLICES], *parent;
    struct { int kind; char remote[32]; } link[MAX_LINKS]; /* kind: UNKNOWN no such link, -2 inactive, else nvml's type */
};

static struct { char function[64]; int gpu, error, after, seen; } faults[MAX_FAULTS];
static struct { const char *function; u64 calls, nanoseconds; } count[MAX_FUNCTIONS];
static struct device gpus[MAX_GPUS];
static struct name names[MAX_GPUS * MAX_PROCESSES];
static int name_count;
static int gpu_count, fault_count, open_count, delay_us, cuda = UNKNOWN;
static u64 opened_at;
static int pcie[MAX_GPUS][MAX_GPUS], p2p[MAX_GPUS][MAX_GPUS][KINDS];
static char driver[80];

static void clear(struct device *device)
{
    memset(device, 0, sizeof *device);
    device->total = device->used = UNKNOWN;
    memset(&device->major, UNKNOWN, offsetof(struct device, fabric_status) - offsetof(struct device, major));
    device->processes = device->graphics = UNKNOWN;
    memset(device->pcie_rate, UNKNOWN, sizeof device->pcie_rate);
    memset(device->pcie_kb_s, UNKNOWN, sizeof device->pcie_kb_s);
    memset(device->nvlink_rate, UNKNOWN, sizeof device->nvlink_rate);
    device->energy[0] = UNKNOWN;
    for (int i = 0; i < MAX_LINKS; i++) device->link[i].kind = UNKNOWN;
}

static void read_cpus(u64 *words, const char *list)
{
    while (*list) {
        char *end;
        long first = strtol(list, &end, 10), last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        for (long cpu = first; cpu <= last; cpu++) words[cpu / 64] |= 1ull << cpu % 64;
        list = *end == ',' ? end + 1 : end;
    }
}

static void read_process(struct process *process, const char *value)
{
    struct name *name = &names[name_count];
    if (sscanf(value, "%u %llu %u %63s", &process->pid, &process->used, &process->gpu_instance, name->name) == 4)
        names[name_count++].pid = process->pid;
    process->compute_instance = process->gpu_instance;
}

static void read_traffic(struct device *device, const char *key, const char *value)
{
    struct { const char *key; long long *pair; } rates[] = {
        {"pcie_rate", device->pcie_rate}, {"pcie_kb_s", device->pcie_kb_s}, {"nvlink_rate", device->nvlink_rate},
        {"energy", device->energy}};
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++)
        if (!strcmp(key, rates[i].key)) sscanf(value, "%lld %lld", &rates[i].pair[0], &rates[i].pair[1]);
    if (!strcmp(key, "pcie_start")) device->pcie_start = atoll(value);
    if (!strcmp(key, "nvlink_each")) device->nvlink_each = atoi(value);
    if (!strcmp(key, "then") && device->steps < MAX_STEPS) device->utilizations[device->steps++] = atoi(value);
}

static void read_fact(struct device *device, const char *key, const char *value)
{
    struct { const char *key; int *place; } numbers[] = {
        {"numa", &device->numa}, {"utilization", &device->utilization}, {"mig_mode", &device->mig_mode},
        {"display", &device->display}, {"compute_mode", &device->compute_mode}, {"cores", &device->cores},
        {"clock", &device->clock}, {"generation", &device->generation}, {"width", &device->width},
        {"generation_now", &device->generation_now}, {"width_now", &device->width_now}, {"ecc", &device->ecc},
        {"ecc_uncorrected", &device->ecc_uncorrected}, {"row_pending", &device->row_pending},
        {"row_failed", &device->row_failed}, {"retired_pending", &device->retired_pending}, {"throttle", &device->throttle},
        {"fabric", &device->fabric}, {"fabric_status", &device->fabric_status}, {"fabric_clique", &device->fabric_clique},
        {"fabric_health", &device->fabric_health}, {"recovery", &device->recovery},
        {"pcie_replays", &device->pcie_replays}, {"bad_link", &device->bad_link}, {"graphics", &device->graphics}, {"milliwatts", &device->milliwatts}, {"temperature", &device->temperature},
        {"instance", &device->instance}, {"compute_instance", &device->compute_instance}, {"processes", &device->processes}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key)) *numbers[i].place = atoi(value);
    if (!strcmp(key, "name")) snprintf(device->name, sizeof device->name, "%s", value);
    if (!strcmp(key, "uuid")) snprintf(device->uuid, sizeof device->uuid, "%s", value);
    if (!strcmp(key, "bus_id")) snprintf(device->bus_id, sizeof device->bus_id, "%s", value);
    if (!strcmp(key, "total")) device->total = atoll(value);
    if (!strcmp(key, "used")) device->used = atoll(value);
    if (!strcmp(key, "capability")) sscanf(value, "%d %d", &device->major, &device->minor);
    if (!strcmp(key, "cpus")) read_cpus(device->cpus, value);
    read_traffic(device, key, value);
    if (!strcmp(key, "fabric_cluster"))
        for (int i = 0; i < 16; i++) sscanf(value + 2 * i, "%2hhx", &device->fabric_cluster[i]);
    if (!strcmp(key, "process")) read_process(&device->process[device->processes++], value);
    if (!strcmp(key, "drawing")) read_process(&device->drawing[device->graphics++], value);
    if (!strcmp(key, "client")) read_process(&device->client[device->clients++], value);
    if (!strcmp(key, "link")) {
        int at = 0, kind = 0;
        char remote[32] = "";
        sscanf(value, "%d %d %31s", &at, &kind, remote);
        device->link[at].kind = kind;
        memcpy(device->link[at].remote, remote, sizeof remote);
    }
}

static void read_line(const char *key, const char *value, struct device **current)
{
    int a, b, kind, level;
    if (!strcmp(key, "driver")) snprintf(driver, sizeof driver, "%s", value);
    else if (!strcmp(key, "cuda")) cuda = atoi(value);
    else if (!strcmp(key, "delay")) delay_us = atoi(value);
    else if (!strcmp(key, "fault")) {
        sscanf(value, "%63s %d %d %d", faults[fault_count].function, &faults[fault_count].gpu, &faults[fault_count].error,
               &faults[fault_count].after);
        faults[fault_count++].seen = 0;
    } else if (!strcmp(key, "gpu")) {
        clear(*current = &gpus[gpu_count]);
        (*current)->index = gpu_count++;
    } else if (!strcmp(key, "slice")) {
        struct device *parent = &gpus[gpu_count - 1];
        clear(*current = parent->slice[parent->slices++] = malloc(sizeof(struct device)));
        (*current)->index = parent->index, (*current)->is_slice = 1, (*current)->parent = parent;
    } else if (!strcmp(key, "pcie") && sscanf(value, "%d %d %d", &a, &b, &level) == 3) pcie[a][b] = pcie[b][a] = level;
    else if (!strcmp(key, "p2p") && sscanf(value, "%d %d %d %d", &a, &b, &kind, &level) == 4) p2p[a][b][kind] = level;
    else if (*current) read_fact(*current, key, value);
}

static void read_machine(void)
{
    char line[512];
    struct device *current = NULL;
    const char *path = getenv("FAKE_NVML_MACHINE");
    FILE *file = path ? fopen(path, "r") : NULL;
    gpu_count = fault_count = delay_us = name_count = 0;
    memset(pcie, -1, sizeof pcie);
    memset(p2p, -1, sizeof p2p);
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *value = strchr(line, ' ');
        if (value) *value++ = 0;
        read_line(line, value ? value : "", &current);
    }
    if (file) fclose(file);
}

static u64 now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (u64)time.tv_sec * 1000000000 + (u64)time.tv_nsec;
}

/* Counts the call, and takes as long over it as the machine's description wants. */
static void spend(const char *function)
{
    u64 start = now(), end;
    int at = 0;
    while (at < MAX_FUNCTIONS - 1 && count[at].function && strcmp(count[at].function, function)) at++;
    do end = now(); while (end - start < (u64)delay_us * 1000);
    count[at].function = function, count[at].calls++, count[at].nanoseconds += end - start;
}

static void write_counts(void)
{
    const char *path = getenv("FAKE_NVML_CALLS");
    FILE *file = path ? fopen(path, "w") : NULL;
    for (int i = 0; file && i < MAX_FUNCTIONS && count[i].function; i++)
        fprintf(file, "%s %llu %llu\n", count[i].function, count[i].calls, count[i].nanoseconds);
    if (file) fclose(file);
}

/* The error that the machine's description wants here, 0 when none. The first `after` calls that match go well.
 * Two numbers are no errors: HANG never comes back, CRASH ends the process as a bad driver would. */
static int fault_of(const char *function, struct device *device, struct device *other)
{
    for (int i = 0; i < fault_count; i++) {
        int gpu = faults[i].gpu;
        if (strcmp(faults[i].function, "*") && strcmp(faults[i].function, function)) continue;
        if (gpu >= 0 && !(device && device->index == gpu) && !(other && other->index == gpu)) continue;
        if (faults[i].seen++ < faults[i].after) continue;
        while (faults[i].error == HANG) pause();
        if (faults[i].error == CRASH) raise(SIGSEGV);
        return faults[i].error;
    }
    return strcmp(function, "nvmlInitWithFlags") && !open_count ? UNINITIALIZED : SUCCESS;
}

static int fault(const char *function, struct device *device, struct device *other)
{
    spend(function);
    return fault_of(function, device, other);
}

#define CHECK_PAIR(a, b) do { int error_ = fault(__func__, a, b); if (error_) return error_; } while (0)
#define CHECK(device) CHECK_PAIR(device, NULL)
#define NUMBER(function, field) \
    int function(struct device *device, unsigned *out) \
    { CHECK(device); if (device->field < 0) return NOT_SUPPORTED; *out = (unsigned)device->field; return SUCCESS; }
#define TEXT(function, field) \
    int function(struct device *device, char *out, unsigned size) \
    { CHECK(device); if (!*device->field) return NOT_SUPPORTED; snprintf(out, size, "%s", device->field); return SUCCESS; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; read_machine(); CHECK(NULL); open_count++, opened_at = now(); return SUCCESS; }
int nvmlShutdown(void) { spend(__func__); write_counts(); CHECK(NULL); open_count--; return SUCCESS; }
const char *nvmlErrorString(int error) { (void)error; return "an error of the stand-in"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size)
{
    CHECK(NULL);
    snprintf(out, size, "%s", driver);
    return SUCCESS;
}

/* Of the driver that was linked, not the one that runs: nobody should need it. */
int nvmlSystemGetCudaDriverVersion(int *out) { (void)out; CHECK(NULL); return NOT_SUPPORTED; }

int nvmlSystemGetCudaDriverVersion_v2(int *out)
{
    CHECK(NULL);
    *out = cuda;
    return cuda < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *out) { CHECK(NULL); *out = (unsigned)gpu_count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **out)
{
    if (index >= (unsigned)gpu_count) return INVALID_ARGUMENT;
    CHECK(&gpus[index]);
    *out = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **out)
{
    CHECK(NULL);
    for (int i = 0; i < gpu_count; i++)
        if (!strcmp(gpus[i].uuid, uuid)) { *out = &gpus[i]; return SUCCESS; }
    return NOT_FOUND;
}

TEXT(nvmlDeviceGetName, name)
TEXT(nvmlDeviceGetUUID, uuid)
NUMBER(nvmlDeviceGetDisplayActive, display)
NUMBER(nvmlDeviceGetComputeMode, compute_mode)
NUMBER(nvmlDeviceGetNumGpuCores, cores)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, generation)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, width)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, generation_now)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, width_now)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, retired_pending)
NUMBER(nvmlDeviceGetPowerUsage, milliwatts)
NUMBER(nvmlDeviceGetGpuInstanceId, instance)

/* Millijoules: the same counter in every process, as of one driver. */
int nvmlDeviceGetTotalEnergyConsumption(struct device *device, u64 *out)
{
    CHECK(device);
    if (device->energy[0] < 0) return NOT_SUPPORTED;
    *out = (u64)((double)device->energy[0] + (double)device->energy[1] * (double)now() / 1e9);
    return SUCCESS;
}
NUMBER(nvmlDeviceGetComputeInstanceId, compute_instance)

/* What other monitors ask, so that they can be measured on the same stand-in: as a data-centre GPU at rest answers. */
#define AT_REST(function, value) \
    int function(struct device *device, unsigned *out) { CHECK(device); *out = (value); return SUCCESS; }
#define NOT_ASKED(function) int function(struct device *device, unsigned *out) { (void)out; CHECK(device); return NOT_SUPPORTED; }
#define CODER(function) \
    int function(struct device *device, unsigned *use, unsigned *period) { CHECK(device); *use = 0, *period = 167000; return SUCCESS; }

AT_REST(nvmlDeviceGetIndex, (unsigned)(device - gpus))
AT_REST(nvmlDeviceGetPerformanceState, 0)
AT_REST(nvmlDeviceGetPersistenceMode, 1)
AT_REST(nvmlDeviceGetPowerManagementLimit, 700000)
AT_REST(nvmlDeviceGetEnforcedPowerLimit, 700000)
NOT_ASKED(nvmlDeviceGetFanSpeed)
NOT_ASKED(nvmlDeviceGetDriverModel)
CODER(nvmlDeviceGetEncoderUtilization)
CODER(nvmlDeviceGetDecoderUtilization)

/* The GPU memory's own node, as on Grace: never the host's, so a reader who asks this is wrong. */
int nvmlDeviceGetNumaNodeId(struct device *device, unsigned *out) { CHECK(device); *out = 77; return SUCCESS; }

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };

int nvmlDeviceGetPciInfo_v3(struct device *device, struct pci *out)
{
    CHECK(device);
    if (!*device->bus_id) return NOT_SUPPORTED;
    snprintf(out->bus_id, sizeof out->bus_id, "%s", device->bus_id);
    return SUCCESS;
}

/* Version 1 counts what the driver keeps for itself (here 300 MiB) as used; version 2 does not. */
enum { RESERVED = 300 << 20 };

int nvmlDeviceGetMemoryInfo(struct device *device, u64 out[3])
{
    CHECK(device);
    if (device->total < 0) return NOT_SUPPORTED;
    out[0] = (u64)device->total, out[2] = (u64)device->used + RESERVED, out[1] = out[0] - out[2];
    return SUCCESS;
}

struct memory { unsigned version; u64 total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory *out)
{
    CHECK(device);
    if (device->total < 0) return NOT_SUPPORTED;
    if (out->version != (sizeof *out | 2 << 24)) return 25; /* ARGUMENT_VERSION_MISMATCH */
    out->total = (u64)device->total, out->reserved = RESERVED, out->used = (u64)device->used;
    out->free = out->total - out->used - out->reserved;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(struct device *device, int *major, int *minor)
{
    CHECK(device);
    *major = device->major, *minor = device->minor;
    return device->major < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetUtilizationRates(struct device *device, unsigned out[2])
{
    CHECK(device);
    if (device->utilization < 0) return NOT_SUPPORTED;
    out[0] = (unsigned)(device->steps ? device->utilizations[device->step] : device->utilization), out[1] = 0;
    if (device->step < device->steps - 1) device->step++;
    return SUCCESS;
}

static int list(int known, const struct process *from, unsigned *number, struct process *out)
{
    if (known < 0) return NOT_SUPPORTED;
    unsigned room = *number;
    *number = (unsigned)known;
    if (!known) return SUCCESS;
    if (!out || room < *number) return INSUFFICIENT_SIZE;
    memcpy(out, from, *number * sizeof *out);
    return SUCCESS;
}

#define PROCESSES(function, known, from) \
    int function(struct device *device, unsigned *number, struct process *out) \
    { CHECK(device); return list(device->known, device->from, number, out); }

PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, processes, process)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, processes, process)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, graphics, drawing)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, graphics, drawing)

PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, clients, client)

int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size)
{
    CHECK(NULL);
    for (int i = 0; i < name_count; i++)
        if (names[i].pid == pid) { snprintf(out, size, "%s", names[i].name); return SUCCESS; }
    return NOT_FOUND;
}

int nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending)
{
    CHECK(device);
    if (device->mig_mode < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned)device->mig_mode;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *out) { CHECK(device); *out = 7; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned at, struct device **out)
{
    CHECK(device);
    if (at >= (unsigned)device->slices) return NOT_FOUND;
    *out = device->slice[at];
    return SUCCESS;
}

int nvmlDeviceGetMaxClockInfo(struct device *device, unsigned type, unsigned *out)
{
    CHECK(device);
    if (device->clock < 0 || type != 1) return NOT_SUPPORTED;
    *out = (unsigned)device->clock;
    return SUCCESS;
}

struct temperature { unsigned version, sensor; int degrees; };

int nvmlDeviceGetTemperatureV(struct device *device, struct temperature *out)
{
    CHECK(device);
    out->degrees = device->temperature;
    return device->temperature < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetTemperature(struct device *device, unsigned sensor, unsigned *out)
{
    CHECK(device);
    *out = (unsigned)device->temperature;
    return sensor || device->temperature < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetMemoryAffinity(struct device *device, unsigned size, u64 *nodes, unsigned scope)
{
    CHECK(device);
    if (device->numa < 0 || scope != 0 || size == 0) return NOT_SUPPORTED;
    memset(nodes, 0, size * sizeof *nodes);
    nodes[device->numa / 64] = 1ull << device->numa % 64;
    return SUCCESS;
}

int nvmlDeviceGetCpuAffinity(struct device *device, unsigned size, u64 *out)
{
    CHECK(device);
    memset(out, 0, size * sizeof *out);
    memcpy(out, device->cpus, (size < CPU_WORDS ? size : CPU_WORDS) * sizeof *out);
    return SUCCESS;
}

int nvmlDeviceGetEccMode(struct device *device, unsigned *current, unsigned *pending)
{
    CHECK(device);
    if (device->ecc < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned)device->ecc;
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(struct device *device, unsigned uncorrected, unsigned aggregate, u64 *out)
{
    CHECK(device);
    if (device->ecc_uncorrected < 0) return NOT_SUPPORTED;
    *out = uncorrected && !aggregate ? (u64)device->ecc_uncorrected : 7777;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(struct device *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed)
{
    CHECK(device);
    if (device->row_failed < 0) return NOT_SUPPORTED;
    *corrected = *uncorrected = 1, *pending = (unsigned)device->row_pending, *failed = (unsigned)device->row_failed;
    return SUCCESS;
}

static int throttle(struct device *device, u64 *out)
{
    *out = (u64)device->throttle;
    return device->throttle < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(struct device *device, u64 *out) { CHECK(device); return throttle(device, out); }
int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *device, u64 *out) { CHECK(device); return throttle(device, out); }

struct fabric { unsigned version; unsigned char cluster[16]; unsigned status, clique, state, health; };

int nvmlDeviceGetGpuFabricInfoV(struct device *device, struct fabric *out)
{
    CHECK(device);
    if (device->fabric < 0) return NOT_SUPPORTED;
    if (out->version != (sizeof *out | 2 << 24)) return 25; /* ARGUMENT_VERSION_MISMATCH */
    memcpy(out->cluster, device->fabric_cluster, sizeof out->cluster);
    out->status = (unsigned)device->fabric_status, out->clique = (unsigned)device->fabric_clique;
    out->state = (unsigned)device->fabric, out->health = (unsigned)device->fabric_health;
    return SUCCESS;
}

int nvmlDeviceGetTopologyCommonAncestor(struct device *a, struct device *b, unsigned *out)
{
    CHECK_PAIR(a, b);
    if (pcie[a->index][b->index] < 0) return NOT_SUPPORTED;
    *out = (unsigned)pcie[a->index][b->index];
    return SUCCESS;
}

int nvmlDeviceGetP2PStatus(struct device *a, struct device *b, unsigned kind, unsigned *out)
{
    CHECK_PAIR(a, b);
    if (kind >= KINDS) return INVALID_ARGUMENT;
    if (p2p[a->index][b->index][kind] < 0) return NOT_SUPPORTED;
    *out = (unsigned)p2p[a->index][b->index][kind];
    return SUCCESS;
}

static int link_problem(struct device *device, unsigned link)
{
    if (device->link[0].kind == UNKNOWN) return NOT_SUPPORTED;
    return link >= MAX_LINKS || device->link[link].kind == UNKNOWN ? INVALID_ARGUMENT : SUCCESS;
}

int nvmlDeviceGetNvLinkState(struct device *device, unsigned link, unsigned *out)
{
    CHECK(device);
    int problem = link_problem(device, link);
    if (!problem) *out = device->link[link].kind >= 0;
    return problem;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(struct device *device, unsigned link, unsigned *out)
{
    CHECK(device);
    int problem = link_problem(device, link);
    if (!problem) *out = (unsigned)device->link[link].kind;
    return problem;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(struct device *device, unsigned link, struct pci *out)
{
    CHECK(device);
    int problem = link_problem(device, link);
    if (!problem) snprintf(out->bus_id, sizeof out->bus_id, "%s", device->link[link].remote);
    return problem;
}

/* Throughput. The counters grow with the time since nvmlInit, at the rates of the machine's description. */
struct field { unsigned id, scope; long long timestamp, latency; int type, result; union { u64 wide; unsigned narrow; } value; };

enum { NVLINK_TX = 138, NVLINK_RX = 139, NVLINK_STATE = 165, TO_SWITCHES = 147, PCIE_TX = 197, PCIE_RX = 198,
       ECC_MODE = 1, UNCORRECTED = 4, RETIREMENT = 31, REMAP_PENDING = 144, REMAP_FAILED = 145,
       RECOVERY = 230, PCIE_REPLAYS = 94, NVLINK_REPLAYS = 52, NVLINK_RECOVERIES = 59, UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3 };

static u64 grown(long long rate) { return (u64)((double)rate * (double)(now() - opened_at) / 1e9); }

/* Fields that tell what a function of their own tells: with the faults of that function. */
static int read_known(struct device *device, struct field *field)
{
    struct { unsigned id; const char *function; int told; } known[] = {
        {ECC_MODE, "nvmlDeviceGetEccMode", device->ecc}, {UNCORRECTED, "nvmlDeviceGetTotalEccErrors", device->ecc_uncorrected},
        {RETIREMENT, "nvmlDeviceGetRetiredPagesPendingStatus", device->retired_pending},
        {REMAP_PENDING, "nvmlDeviceGetRemappedRows", device->row_pending},
        {REMAP_FAILED, "nvmlDeviceGetRemappedRows", device->row_failed}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i].id != field->id) continue;
        int problem = fault_of(known[i].function, device, NULL);
        if (problem || known[i].told < 0) return problem ? problem : NOT_SUPPORTED;
        field->type = field->id == UNCORRECTED ? UNSIGNED_LONG_LONG : UNSIGNED_INT;
        field->value.wide = (u64)known[i].told;
        return SUCCESS;
    }
    return UNKNOWN;
}

static int read_field(struct device *device, struct field *field)
{
    int known = read_known(device, field);
    if (known != UNKNOWN) return known;
    int direction = field->id == NVLINK_RX || field->id == PCIE_RX;
    if (field->id == TO_SWITCHES) {
        int problem = fault_of("nvmlDeviceGetNvLinkRemoteDeviceType", device, NULL);
        if (!problem) problem = link_problem(device, 0);
        field->type = UNSIGNED_INT;
        for (int i = field->value.narrow = 0; i < MAX_LINKS; i++) field->value.narrow += device->link[i].kind == 2;
        return problem;
    }
    if (field->id == NVLINK_STATE) { /* the faults of the function that asks for one link */
        int problem = fault_of("nvmlDeviceGetNvLinkState", device, NULL);
        if (!problem) problem = link_problem(device, field->scope);
        if (!problem) field->type = UNSIGNED_INT, field->value.narrow = device->link[field->scope].kind >= 0;
        return problem;
    }
    int told = field->id == RECOVERY ? device->recovery : field->id == PCIE_REPLAYS ? device->pcie_replays : UNKNOWN;
    if (field->id == NVLINK_REPLAYS || field->id == NVLINK_RECOVERIES) {
        for (int i = 0; i < MAX_LINKS; i++)
            if (device->link[i].kind >= 0) told = (told < 0 ? 0 : told) + (field->id == NVLINK_REPLAYS && i == device->bad_link);
    }
    if (told >= 0) { field->type = UNSIGNED_INT, field->value.narrow = (unsigned)told; return SUCCESS; }
    if (field->id == NVLINK_TX || field->id == NVLINK_RX) {
        int all = field->scope == 0xFFFFFFFF, links = 0;
        for (int i = 0; i < MAX_LINKS; i++) links += device->link[i].kind >= 0;
        if (device->nvlink_rate[0] < 0 || !links) return NOT_SUPPORTED;
        if (all ? device->nvlink_each : field->scope >= (unsigned)links) return INVALID_ARGUMENT;
        field->type = UNSIGNED_LONG_LONG, field->value.wide = grown(device->nvlink_rate[direction]) / (u64)(all ? 1 : links);
        return SUCCESS;
    }
    if ((field->id != PCIE_TX && field->id != PCIE_RX) || device->pcie_rate[0] < 0) return NOT_SUPPORTED;
    u64 value = (u64)device->pcie_start + grown(device->pcie_rate[direction]);
    if (device->pcie_start) field->type = UNSIGNED_LONG_LONG, field->value.wide = value;
    else field->type = UNSIGNED_INT, field->value.narrow = (unsigned)value;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkErrorCounter(struct device *device, unsigned link, unsigned counter, u64 *out)
{
    CHECK(device);
    int problem = link_problem(device, link);
    if (!problem) *out = counter == 0 && (int)link == device->bad_link;
    return problem;
}

int nvmlDeviceGetFieldValues(struct device *device, int fields, struct field *field)
{
    CHECK(device);
    for (int i = 0; i < fields; i++) field[i].result = read_field(device, &field[i]);
    return SUCCESS;
}

/* As the real one: KB/s over a window of 20 ms, which it waits for. */
int nvmlDeviceGetPcieThroughput(struct device *device, unsigned direction, unsigned *out)
{
    CHECK(device);
    if (direction > 1 || device->pcie_kb_s[direction] < 0) return NOT_SUPPORTED;
    struct timespec window = {0, 20000000};
    nanosleep(&window, NULL);
    *out = (unsigned)device->pcie_kb_s[direction];
    return SUCCESS;
}
