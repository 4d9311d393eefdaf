// The DRAM of the Verilator engine with a port of its own, for test_dram.py.

#include "dram.h"

using namespace emte;

struct Ports {
    // Inputs of the port: what the DRAM drives.
    uint64_t next_memory__arready, next_memory__awready, next_memory__wready;
    uint64_t next_memory__rvalid, next_memory__rid, next_memory__rdata, next_memory__rlast;
    uint64_t next_memory__bvalid, next_memory__bid;
    // Outputs: what a manager drives.
    uint64_t memory__arvalid, memory__arid, memory__araddr, memory__arlen, memory__arsize;
    uint64_t memory__arburst;
    uint64_t memory__awvalid, memory__awid, memory__awaddr, memory__awlen, memory__awsize;
    uint64_t memory__awburst;
    uint64_t memory__wvalid, memory__wdata, memory__wstrb, memory__wlast;
    uint64_t memory__rready, memory__bready;
};

struct Bench {
    Ports ports{};
    Traffic traffic{};
    Chance chance;
    Dram<Ports> dram;

    Bench(uint64_t seed, uint64_t latency, uint64_t begin, uint64_t end)
        : chance(seed), dram(ports, chance, traffic, latency) {
        dram.storage_begin = begin;
        dram.storage_end = end;
    }
};

extern "C" {

Bench* create(uint64_t seed, uint64_t latency, uint64_t begin, uint64_t end) {
    return new Bench(seed, latency, begin, end);
}

Ports* drive(Bench* bench, uint64_t cycle) {
    bench->chance.next_cycle(cycle);
    bench->dram.drive(cycle);
    return &bench->ports;
}

bool observe(Bench* bench, uint64_t cycle) { return bench->dram.observe(cycle); }

const Traffic* traffic(const Bench* bench) { return &bench->traffic; }

void destroy(Bench* bench) { delete bench; }
}
