/* A stand-in for libcuda.so.1: the few functions that tell in which order CUDA counts GPUs.
 *
 * $FAKE_CUDA_GPUS lists GPUs in PCI order as "uuid,bus id,speed" with ';' between them, the slices of one in MIG mode in
 * its place. As the real one does, it counts the fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID, shows only what
 * CUDA_VISIBLE_DEVICES has by index or UUID up to the first that is not there, and of MIG slices only one.
 * $FAKE_CUDA_FAULT: "init" (cuInit fails), "uuid" (no UUID is told), "hang".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_SUPPORTED = 801, MAX_GPUS = 16 };

struct gpu { char uuid[64], bus_id[32]; int speed; };

static struct gpu gpus[MAX_GPUS];
static int count;

static int is(const char *name, const char *value)
{
    const char *now = getenv(name);
    return now && !strcmp(now, value);
}

static int find(const char *entry)
{
    if (*entry >= '0' && *entry <= '9') return atoi(entry);
    for (int i = 0; i < count; i++)
        if (!strncmp(gpus[i].uuid, entry, strlen(entry))) return i;
    return count;
}

static void keep_visible(const char *mask)
{
    struct gpu kept[MAX_GPUS];
    int left = 0;
    char text[256];
    snprintf(text, sizeof text, "%s", mask);
    for (char *entry = strtok(text, ","); entry && find(entry) < count; entry = strtok(NULL, ","))
        kept[left++] = gpus[find(entry)];
    memcpy(gpus, kept, sizeof kept);
    count = left;
}

int cuInit(unsigned flags)
{
    (void)flags;
    if (is("FAKE_CUDA_FAULT", "hang")) sleep(60);
    if (is("FAKE_CUDA_FAULT", "init") || !getenv("FAKE_CUDA_GPUS")) return NO_DEVICE;
    char text[4096];
    snprintf(text, sizeof text, "%s", getenv("FAKE_CUDA_GPUS"));
    for (char *entry = strtok(text, ";"); entry && count < MAX_GPUS; entry = strtok(NULL, ";")) {
        struct gpu *gpu = &gpus[count++];
        sscanf(entry, "%63[^,],%31[^,],%d", gpu->uuid, gpu->bus_id, &gpu->speed);
    }
    if (!is("CUDA_DEVICE_ORDER", "PCI_BUS_ID"))
        for (int i = 1; i < count; i++) /* insertion sort: equal ones keep their order */
            for (int j = i; j > 0 && gpus[j].speed > gpus[j - 1].speed; j--) {
                struct gpu slower = gpus[j - 1];
                gpus[j - 1] = gpus[j];
                gpus[j] = slower;
            }
    if (getenv("CUDA_VISIBLE_DEVICES")) keep_visible(getenv("CUDA_VISIBLE_DEVICES"));
    for (int i = 0; i < count; i++)
        if (!strncmp(gpus[i].uuid, "MIG-", 4)) {
            gpus[0] = gpus[i];
            count = 1;
        }
    return SUCCESS;
}

int cuDeviceGetCount(int *number) { *number = count; return SUCCESS; }

int cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal;
    return ordinal < count ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetUuid_v2(unsigned char uuid[16], int device)
{
    if (is("FAKE_CUDA_FAULT", "uuid")) return NOT_SUPPORTED;
    const char *text = gpus[device].uuid + 4; /* past "GPU-" */
    for (int i = 0; i < 16; text++) {
        unsigned byte;
        if (*text == '-') continue;
        sscanf(text++, "%2x", &byte);
        uuid[i++] = (unsigned char)byte;
    }
    return SUCCESS;
}

int cuDeviceGetPCIBusId(char *text, int length, int device)
{
    snprintf(text, (size_t)length, "%s", gpus[device].bus_id);
    return SUCCESS;
}
