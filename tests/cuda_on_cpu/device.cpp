// The threads of the device on the CPU.
//
// Blocks run one after another. Each thread of a block is a fiber, which runs until it comes to a barrier or a shuffle,
// or to its end. A barrier opens when all threads of the block are there, a shuffle when all lanes of the warp are: where
// some are elsewhere the launch fails, as a real one would hang or be undefined. Each warp runs as far as it can before
// the next one does, and the order is ascending, descending or random, since a missing barrier does no harm in one order
// or the other.
#include "device.hpp"

#include <cstdint>
#include <cstdio>
#include <cstdlib>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace device {

// ---------------------------------------------------------------------------------------------------------------------
// Fibers
// ---------------------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
// Stores the stack pointer and the registers that a call preserves, and takes up those of another fiber.
extern "C" void device_switch(void** from, void* to);
asm(".text\n.hidden device_switch\n.globl device_switch\n.type device_switch,@function\ndevice_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

struct Context {
    void* stack_pointer;
    void start(char* stack, size_t size, void (*function)()) {
        auto top = reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t(15);
        auto frame = reinterpret_cast<void**>(top - 64);
        for (int i = 0; i < 6; i++) frame[i] = nullptr;
        frame[6] = reinterpret_cast<void*>(function);
        stack_pointer = frame;
    }
    void switch_to(Context& other) { device_switch(&stack_pointer, other.stack_pointer); }
};
#else
#include <ucontext.h>
struct Context {
    ucontext_t context;
    void start(char* stack, size_t size, void (*function)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = size;
        makecontext(&context, function, 0);
    }
    void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif

enum State { RUNS, AT_BARRIER, AT_SHUFFLE, ENDED };
constexpr int WARP_SIZE = 32, MOST_THREADS = 1024;
constexpr size_t STACK = 64 * 1024 + 576;

struct Fiber {
    Context context;
    State state;
    dim3 place;
    int shuffles;
    unsigned long long slot[2];  // what it gives its neighbours, in this shuffle and the one before
};

static Fiber fibers[MOST_THREADS];
static int count;  // of the fibers of a block
static char* stacks = static_cast<char*>(std::malloc(MOST_THREADS * STACK));
static Context scheduler;
static int running;
static void (*kernel_body)(void*);
static void* kernel_arguments;
static char error[100];

static void wait(State state) {
    fibers[running].state = state;
    fibers[running].context.switch_to(scheduler);
}

static void body_of_fiber() {
    kernel_body(kernel_arguments);
    wait(ENDED);
}

enum Order { ASCENDING, DESCENDING, RANDOM };

static uint32_t draw(uint32_t& random) {
    random = random * 1664525u + 1013904223u;  // Numerical Recipes' generator
    return random >> 16;
}

// Runs a warp until it can go no further without the others, and so as far ahead of them as can be. Its lanes take turns
// in the order of their numbers with some bits flipped. Those that have ended can take part in no shuffle.
static void run_warp(int first, int last, int order, uint32_t& random) {
    for (int at_shuffle = 0;; at_shuffle = 0) {
        int flipped = order == ASCENDING ? 0 : order == DESCENDING ? WARP_SIZE - 1 : draw(random) % WARP_SIZE;
        for (int k = 0; k < WARP_SIZE; k++) {
            int i = first + (k ^ flipped);
            if (i >= last || fibers[i].state != RUNS) continue;
            running = i;
            threadIdx = fibers[i].place;
            scheduler.switch_to(fibers[i].context);
        }
        for (int i = first; i < last; i++) at_shuffle += fibers[i].state == AT_SHUFFLE;
        if (at_shuffle < last - first) return;
        for (int i = first; i < last; i++) fibers[i].state = RUNS;
    }
}

static bool run_block(int order, uint32_t& random) {
    int warps = (count + WARP_SIZE - 1) / WARP_SIZE, turn[MOST_THREADS / WARP_SIZE];
    for (int w = 0; w < warps; w++) turn[w] = order == DESCENDING ? warps - 1 - w : w;
    for (;;) {
        if (order == RANDOM)
            for (int w = warps - 1; w > 0; w--) {
                int other = draw(random) % (w + 1), held = turn[w];
                turn[w] = turn[other];
                turn[other] = held;
            }
        for (int w = 0; w < warps; w++) {
            int first = turn[w] * WARP_SIZE;
            run_warp(first, first + WARP_SIZE < count ? first + WARP_SIZE : count, order, random);
        }
        int at_barrier = 0, ended = 0;
        for (int i = 0; i < count; i++) {
            at_barrier += fibers[i].state == AT_BARRIER;
            ended += fibers[i].state == ENDED;
        }
        if (ended == count) return true;
        if (at_barrier + ended < count || (ended && at_barrier % WARP_SIZE)) {
            const char* what = at_barrier ? "not all threads of a block come to a barrier"
                                          : "not all lanes of a warp take part in a shuffle";
            std::snprintf(error, sizeof(error), "%s", what);
            return false;
        }
        for (int i = 0; i < count; i++)
            if (fibers[i].state == AT_BARRIER) fibers[i].state = RUNS;
    }
}

void barrier() { wait(AT_BARRIER); }

unsigned long long shuffle(unsigned long long value, int lanes) {
    Fiber &self = fibers[running], &other = fibers[running ^ lanes];
    int parity = self.shuffles++ & 1;
    self.slot[parity] = value;
    wait(AT_SHUFFLE);
    return other.slot[parity];
}

const char* launch(void (*body)(void*), void* given, const int* expected, int expected_count, const int* sizes,
                   int given_count, const unsigned* grid, const unsigned* block, int order) {
    if (given_count != expected_count) {
        std::snprintf(error, sizeof(error), "expected %d arguments, got %d", expected_count, given_count);
        return error;
    }
    for (int i = 0; i < expected_count; i++)
        if (sizes[i] != expected[i]) {
            std::snprintf(error, sizeof(error), "argument %d: expected %d bytes, got %d", i, expected[i], sizes[i]);
            return error;
        }
    kernel_body = body;
    kernel_arguments = given;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    uint32_t random = 1;
    count = int(block[0] * block[1] * block[2]);
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                for (unsigned i = 0; i < unsigned(count); i++) {
                    fibers[i].state = RUNS;
                    fibers[i].shuffles = 0;
                    fibers[i].place = {i % block[0], i / block[0] % block[1], i / (block[0] * block[1])};
                    fibers[i].context.start(stacks + i * STACK, STACK, body_of_fiber);
                }
                if (!run_block(order, random)) return error;
            }
    return nullptr;
}

}  // namespace device
