/* A stand-in for libnvidia-ml.so.1: the driver's own function names over a machine described in a text file.
 *
 * The unmodified nvidia-ml-py loads it when LD_LIBRARY_PATH leads to it. $FAKE_NVML_MACHINE names the description that
 * machine.py writes, one fact a line; a fact that is not there makes its call answer NOT_SUPPORTED, as an old card would.
 * Structures and numbers follow nvml.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MAX_GPUS = 16, MAX_LINKS = 18, MAX_PROCESSES = 8, MAX_SLICES = 8, MAX_FAULTS = 64, UNKNOWN = -1 };

typedef unsigned long long u64;

struct process { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; };

struct device {
    int index, is_slice, slices, processes, calls;
    char name[96], uuid[96], bus_id[32];
    long long total, used;
    int major, minor, numa, utilization, mig_mode, display, compute_mode, cores, clock, generation, width, fabric, milliwatts,
        temperature, instance, compute_instance;
    struct process process[MAX_PROCESSES];
    struct device *slice[MAX_SLICES], *parent;
    struct { int kind; char remote[32]; } link[MAX_LINKS]; /* kind: UNKNOWN no such link, -2 inactive, else nvml's type */
};

static struct { char function[64]; int gpu, error, after; } faults[MAX_FAULTS];
static struct device gpus[MAX_GPUS];
static int gpu_count, fault_count, open_count, cuda = UNKNOWN;
static int pcie[MAX_GPUS][MAX_GPUS], p2p[MAX_GPUS][MAX_GPUS];
static char driver[80];

static void clear(struct device *device)
{
    memset(device, 0, sizeof *device);
    device->total = device->used = UNKNOWN;
    device->major = device->numa = device->utilization = device->mig_mode = device->display = device->compute_mode = UNKNOWN;
    device->cores = device->clock = device->generation = device->width = device->fabric = device->milliwatts = UNKNOWN;
    device->temperature = device->instance = device->compute_instance = UNKNOWN;
    device->processes = UNKNOWN;
    for (int i = 0; i < MAX_LINKS; i++) device->link[i].kind = UNKNOWN;
}

static void read_fact(struct device *device, const char *key, const char *value)
{
    struct { const char *key; int *place; } numbers[] = {
        {"numa", &device->numa}, {"utilization", &device->utilization}, {"mig_mode", &device->mig_mode},
        {"display", &device->display}, {"compute_mode", &device->compute_mode}, {"cores", &device->cores},
        {"clock", &device->clock}, {"generation", &device->generation}, {"width", &device->width},
        {"fabric", &device->fabric}, {"milliwatts", &device->milliwatts}, {"temperature", &device->temperature},
        {"instance", &device->instance}, {"compute_instance", &device->compute_instance}, {"processes", &device->processes}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key)) *numbers[i].place = atoi(value);
    if (!strcmp(key, "name")) snprintf(device->name, sizeof device->name, "%s", value);
    if (!strcmp(key, "uuid")) snprintf(device->uuid, sizeof device->uuid, "%s", value);
    if (!strcmp(key, "bus_id")) snprintf(device->bus_id, sizeof device->bus_id, "%s", value);
    if (!strcmp(key, "total")) device->total = atoll(value);
    if (!strcmp(key, "used")) device->used = atoll(value);
    if (!strcmp(key, "capability")) sscanf(value, "%d %d", &device->major, &device->minor);
    if (!strcmp(key, "process")) {
        struct process *process = &device->process[device->processes++];
        sscanf(value, "%u %llu %u", &process->pid, &process->used, &process->gpu_instance);
        process->compute_instance = process->gpu_instance;
    }
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
    int a, b, level;
    if (!strcmp(key, "driver")) snprintf(driver, sizeof driver, "%s", value);
    else if (!strcmp(key, "cuda")) cuda = atoi(value);
    else if (!strcmp(key, "fault")) {
        sscanf(value, "%63s %d %d %d", faults[fault_count].function, &faults[fault_count].gpu, &faults[fault_count].error,
               &faults[fault_count].after);
        fault_count++;
    } else if (!strcmp(key, "gpu")) {
        clear(*current = &gpus[gpu_count]);
        (*current)->index = gpu_count++;
    } else if (!strcmp(key, "slice")) {
        struct device *parent = &gpus[gpu_count - 1];
        clear(*current = parent->slice[parent->slices++] = malloc(sizeof(struct device)));
        (*current)->index = parent->index, (*current)->is_slice = 1, (*current)->parent = parent;
    } else if (!strcmp(key, "pcie") && sscanf(value, "%d %d %d", &a, &b, &level) == 3) pcie[a][b] = pcie[b][a] = level;
    else if (!strcmp(key, "p2p") && sscanf(value, "%d %d %d", &a, &b, &level) == 3) p2p[a][b] = level;
    else if (*current) read_fact(*current, key, value);
}

static void read_machine(void)
{
    char line[512];
    struct device *current = NULL;
    const char *path = getenv("FAKE_NVML_MACHINE");
    FILE *file = path ? fopen(path, "r") : NULL;
    gpu_count = fault_count = 0;
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

/* The error that the machine's description wants here, 0 when none. Each call on a device counts towards `after`. */
static int fault(const char *function, struct device *device)
{
    if (device) device->calls++;
    for (int i = 0; i < fault_count; i++) {
        if (strcmp(faults[i].function, "*") && strcmp(faults[i].function, function)) continue;
        if (faults[i].gpu >= 0 && (!device || device->index != faults[i].gpu)) continue;
        if (device && device->calls <= faults[i].after) continue;
        return faults[i].error;
    }
    return strcmp(function, "nvmlInitWithFlags") && !open_count ? UNINITIALIZED : SUCCESS;
}

#define CHECK(device) do { int error_ = fault(__func__, device); if (error_) return error_; } while (0)
#define NUMBER(function, field) \
    int function(struct device *device, unsigned *out) \
    { CHECK(device); if (device->field < 0) return NOT_SUPPORTED; *out = (unsigned)device->field; return SUCCESS; }
#define TEXT(function, field) \
    int function(struct device *device, char *out, unsigned size) \
    { CHECK(device); if (!*device->field) return NOT_SUPPORTED; snprintf(out, size, "%s", device->field); return SUCCESS; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; read_machine(); CHECK(NULL); open_count++; return SUCCESS; }
int nvmlShutdown(void) { CHECK(NULL); open_count--; return SUCCESS; }
const char *nvmlErrorString(int error) { (void)error; return "an error of the stand-in"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size)
{
    CHECK(NULL);
    snprintf(out, size, "%s", driver);
    return SUCCESS;
}

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
NUMBER(nvmlDeviceGetPowerUsage, milliwatts)
NUMBER(nvmlDeviceGetGpuInstanceId, instance)
NUMBER(nvmlDeviceGetComputeInstanceId, compute_instance)

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
    out[0] = (unsigned)device->utilization, out[1] = 0;
    return SUCCESS;
}

static int processes(struct device *device, unsigned *count, struct process *out)
{
    if (device->processes < 0) return NOT_SUPPORTED;
    unsigned room = *count;
    *count = (unsigned)device->processes;
    if (!device->processes) return SUCCESS;
    if (!out || room < *count) return INSUFFICIENT_SIZE;
    memcpy(out, device->process, *count * sizeof *out);
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(struct device *device, unsigned *count, struct process *out)
{
    CHECK(device);
    return processes(device, count, out);
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, unsigned *count, struct process *out)
{
    CHECK(device);
    return processes(device, count, out);
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

struct fabric { unsigned version; unsigned char cluster[16]; unsigned status, clique, state, health; };

int nvmlDeviceGetGpuFabricInfoV(struct device *device, struct fabric *out)
{
    CHECK(device);
    if (device->fabric < 0) return NOT_SUPPORTED;
    out->state = (unsigned)device->fabric, out->status = 0;
    return SUCCESS;
}

int nvmlDeviceGetTopologyCommonAncestor(struct device *a, struct device *b, unsigned *out)
{
    CHECK(a);
    if (pcie[a->index][b->index] < 0) return NOT_SUPPORTED;
    *out = (unsigned)pcie[a->index][b->index];
    return SUCCESS;
}

int nvmlDeviceGetP2PStatus(struct device *a, struct device *b, unsigned what, unsigned *out)
{
    CHECK(a);
    if (what > 4) return INVALID_ARGUMENT;
    if (p2p[a->index][b->index] < 0) return NOT_SUPPORTED;
    *out = (unsigned)p2p[a->index][b->index];
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
