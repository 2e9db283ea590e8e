// The worker of oneDNN: onednn chain|dw. Its threads are those of OMP_NUM_THREADS.
//
// `chain` is one convolution after the other, their activations and the residual as post-ops; `dw` gives the
// expansion the depthwise convolution as a post-op. Layouts are those that oneDNN chooses, or channels last where
// there is a LayerNorm, and converting to and from them is not timed: it is what a network does once, at its ends.
// README.md lists the commands.

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"

using namespace dnnl;
using Tag = memory::format_tag;
using Args = std::unordered_map<int, memory>;

static const auto F32 = memory::data_type::f32;
static engine cpu(engine::kind::cpu, 0);
static stream queue(cpu);

struct Unsupported : std::runtime_error {
    using runtime_error::runtime_error;
};

struct Case {
    std::string kind, activation, dir;
    long side, c_in, c_exp, c_out, stride, kernel, squeezed;

    explicit Case(std::istream &line) {
        std::string name;
        line >> name >> kind >> side >> c_in >> c_exp >> c_out >> stride >> kernel >> activation >> squeezed;
        line >> std::ws;
        if (!line || !std::getline(line, dir)) throw std::runtime_error("too few fields");
    }

    bool bottleneck() const { return kind == "ir" || kind == "sep"; }
    bool residual() const { return (bottleneck() || kind == "cnx") && stride == 1 && c_in == c_out; }
    long output_side() const { return (side + stride - 1) / stride; }

    // A tensor of a file, in the layout of `desc`; `plain` is the layout of the file.
    memory tensor(const std::string &name, const memory::desc &desc, Tag plain) const {
        memory from({desc.get_dims(), F32, plain}, cpu), to(desc, cpu);
        std::ifstream file(dir + "/" + name + ".f32", std::ios::binary);
        file.read(static_cast<char *>(from.get_data_handle()), from.get_desc().get_size());
        if (!file) throw std::runtime_error("cannot read " + name);
        reorder(from, to).execute(queue, from, to);
        queue.wait();
        return to;
    }
};

static memory::desc image(long c, long side, Tag tag = Tag::any) { return {{1, c, side, side}, F32, tag}; }

static void append_activation(post_ops &ops, const Case &c) {
    if (c.activation == "relu")
        ops.append_eltwise(algorithm::eltwise_relu, 0.f, 0.f);
    else if (c.activation == "relu6")
        ops.append_eltwise(algorithm::eltwise_clip, 0.f, 6.f);
    else if (c.activation == "hardswish")
        ops.append_eltwise(algorithm::eltwise_hardswish, 1.f / 6, 0.5f);
    else
        throw std::runtime_error("no activation " + c.activation);
}

static primitive_attr attributes(const post_ops &ops) {
    primitive_attr attr;
    attr.set_post_ops(ops);
    return attr;
}

// A convolution with its weights.
struct Conv {
    convolution_forward::primitive_desc desc;
    convolution_forward primitive;
    Args args;

    Conv(const Case &c, const std::string &name, const memory::desc &src, const memory::desc &weights,
         const memory::desc &dst, long stride, const post_ops &ops)
        : desc(cpu, prop_kind::forward_inference, algorithm::convolution_direct, src, weights,
               {{dst.get_dims()[1]}, F32, Tag::a}, dst, {stride, stride}, padding(weights), padding(weights),
               attributes(ops)),
          primitive(desc) {
        bool depthwise = weights.get_ndims() == 5;
        args.emplace(DNNL_ARG_WEIGHTS, c.tensor(name + (depthwise ? ".w.chw" : ".w"), desc.weights_desc(),
                                                depthwise ? Tag::abcde : Tag::abcd));
        args.emplace(DNNL_ARG_BIAS, c.tensor(name + ".b", desc.bias_desc(), Tag::a));
    }

    static Conv pointwise(const Case &c, const std::string &name, const memory::desc &src, const memory::desc &dst,
                          const post_ops &ops) {
        return Conv(c, name, src, {{dst.get_dims()[1], src.get_dims()[1], 1, 1}, F32, Tag::any}, dst, 1, ops);
    }

    static Conv depthwise(const Case &c, const memory::desc &src, const memory::desc &dst, const post_ops &ops) {
        return Conv(c, "depthwise", src, {{dst.get_dims()[1], 1, 1, c.kernel, c.kernel}, F32, Tag::any}, dst,
                    c.stride, ops);
    }

    static memory::dims padding(const memory::desc &weights) {
        long half = weights.get_dims().back() / 2;
        return {half, half};
    }
};

class Network {
    struct Step {
        primitive operation;
        Args args;
    };
    const Case c;
    std::vector<Step> steps;
    memory x, y; // y: what the last step gives

    // Appends a layer, which takes what the last step gives.
    void follow(Conv conv) {
        if (steps.empty()) y = x = c.tensor("x.nhwc", conv.desc.src_desc(), Tag::acdb);
        conv.args.emplace(DNNL_ARG_SRC, y);
        conv.args.emplace(DNNL_ARG_DST, y = memory(conv.desc.dst_desc(), cpu));
        steps.push_back({conv.primitive, conv.args});
    }

    Conv expand(bool fused) const {
        post_ops ops;
        append_activation(ops, c);
        if (fused) {
            if (c.kernel != 3) throw Unsupported("the depthwise post-op is 3x3");
            ops.append_dw(F32, F32, F32, 3, c.stride, 1);
            append_activation(ops, c);
        }
        Conv conv = Conv::pointwise(c, "expand", image(c.c_in, c.side), image(c.c_exp, c.side), ops);
        if (fused) {
            int dw = DNNL_ARG_ATTR_POST_OP_DW;
            auto of = [&](int arg) { return conv.desc.query_md(query::exec_arg_md, dw | arg); };
            conv.args.emplace(dw | DNNL_ARG_WEIGHTS,
                              c.tensor("depthwise.w.chw", of(DNNL_ARG_WEIGHTS), Tag::abcde));
            conv.args.emplace(dw | DNNL_ARG_BIAS, c.tensor("depthwise.b", of(DNNL_ARG_BIAS), Tag::a));
        }
        return conv;
    }

    // Squeeze-and-excite: scales the last step's output in its place.
    void excite() {
        memory scaled = y;
        long side = c.output_side();
        pooling_forward::primitive_desc mean(
            cpu, prop_kind::forward_inference, algorithm::pooling_avg_exclude_padding, scaled.get_desc(),
            image(c.c_exp, 1), {1, 1}, {side, side}, {0, 0}, {0, 0}, {0, 0});
        y = memory(mean.dst_desc(), cpu);
        steps.push_back({pooling_forward(mean), {{DNNL_ARG_SRC, scaled}, {DNNL_ARG_DST, y}}});
        post_ops relu, gate;
        relu.append_eltwise(algorithm::eltwise_relu, 0.f, 0.f);
        gate.append_eltwise(algorithm::eltwise_hardsigmoid, 1.f / 6, 0.5f);
        follow(Conv::pointwise(c, "se.reduce", y.get_desc(), image(c.squeezed, 1), relu));
        follow(Conv::pointwise(c, "se.expand", y.get_desc(), image(c.c_exp, 1), gate));
        binary::primitive_desc product(cpu, algorithm::binary_mul, scaled.get_desc(), y.get_desc(),
                                       scaled.get_desc());
        steps.push_back({binary(product),
                         {{DNNL_ARG_SRC_0, scaled}, {DNNL_ARG_SRC_1, y}, {DNNL_ARG_DST, scaled}}});
        y = scaled;
    }

    void bottleneck(bool fused) {
        bool expanded = c.kind == "ir";
        auto hidden = image(c.c_exp, c.output_side());
        post_ops ops, sum;
        append_activation(ops, c);
        if (expanded) follow(expand(fused));
        if (!fused) follow(Conv::depthwise(c, expanded ? y.get_desc() : image(c.c_in, c.side), hidden, ops));
        if (c.squeezed > 0) excite();
        if (c.residual()) sum.append_sum();
        auto dst = c.residual() ? x.get_desc() : image(c.c_out, c.output_side());
        follow(Conv::pointwise(c, "project", y.get_desc(), dst, sum));
    }

    // Channels last, since LayerNorm is over the last dimension.
    void convnext() {
        auto nhwc = image(c.c_in, c.side, Tag::acdb);
        follow(Conv::depthwise(c, nhwc, nhwc, {}));

        memory::desc pixels({c.side * c.side, c.c_in}, F32, Tag::ab), channels({c.c_in}, F32, Tag::a);
        layer_normalization_forward::primitive_desc norm(
            cpu, prop_kind::forward_inference, pixels, pixels, 1e-6f,
            normalization_flags::use_scale | normalization_flags::use_shift);
        memory rows(pixels, cpu, y.get_data_handle());
        steps.push_back({layer_normalization_forward(norm),
                         {{DNNL_ARG_SRC, rows}, {DNNL_ARG_DST, rows},
                          {DNNL_ARG_SCALE, c.tensor("norm.w", channels, Tag::a)},
                          {DNNL_ARG_SHIFT, c.tensor("norm.b", channels, Tag::a)}}});

        post_ops gelu, ops;
        gelu.append_eltwise(algorithm::eltwise_gelu_erf, 0.f, 0.f);
        follow(Conv::pointwise(c, "expand", nhwc, image(c.c_exp, c.side), gelu));
        memory::desc scale = image(c.c_out, 1, Tag::abcd);
        ops.append_binary(algorithm::binary_mul, scale);
        if (c.residual()) ops.append_sum();
        Conv project = Conv::pointwise(c, "project", y.get_desc(), image(c.c_out, c.side, Tag::acdb), ops);
        project.args.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1,
                             c.tensor("scale.w", scale, Tag::abcd));
        follow(project);
    }

public:
    Network(const Case &given, bool fused) : c(given) {
        if (fused && c.kind != "ir") throw Unsupported("no expansion before a depthwise convolution");
        if (c.bottleneck())
            bottleneck(fused);
        else if (c.kind == "cnx")
            convnext();
        else if (c.kind == "dw")
            follow(Conv::depthwise(c, image(c.c_in, c.side), image(c.c_out, c.output_side()), {}));
        else if (c.kind == "pw")
            follow(Conv::pointwise(c, "pointwise", image(c.c_in, c.side), image(c.c_out, c.side), {}));
        else
            throw Unsupported("no layer of kind " + c.kind);
    }

    // The residual is summed onto what is in y: in a network that is x, whose memory the output takes over. So no
    // copy is timed, and the sums may grow from call to call.
    void run() {
        for (Step &step : steps) step.operation.execute(queue, step.args);
        queue.wait();
    }

    void output(const std::string &path) {
        if (c.residual()) {
            reorder(x, y).execute(queue, x, y);
            queue.wait();
        }
        run();
        memory plain({y.get_desc().get_dims(), F32, Tag::acdb}, cpu);
        reorder(y, plain).execute(queue, y, plain);
        queue.wait();
        std::ofstream file(path, std::ios::binary);
        file.write(static_cast<char *>(plain.get_data_handle()), plain.get_desc().get_size());
        if (!file.flush()) throw std::runtime_error("cannot write " + path);
    }
};

static const char *isa() {
    int isa = static_cast<int>(get_effective_cpu_isa()), avx2 = static_cast<int>(cpu_isa::avx2),
        avx512 = static_cast<int>(cpu_isa::avx512_core);
    return (isa & avx512) == avx512 ? "avx512" : (isa & avx2) == avx2 ? "avx2" : "native";
}

// The microseconds of each call, at least three, after a fifth of the time to warm up.
static std::string timed(Network &network, double milliseconds) {
    using clock = std::chrono::steady_clock;
    auto us = [](clock::time_point since) {
        return std::chrono::duration<double, std::micro>(clock::now() - since).count();
    };
    auto start = clock::now();
    do network.run();
    while (us(start) < milliseconds * 200);
    std::ostringstream times;
    times.precision(2);
    times << std::fixed;
    start = clock::now();
    for (int calls = 0; calls < 3 || us(start) < milliseconds * 1000; calls++) {
        auto call = clock::now();
        network.run();
        times << us(call) << ' ';
    }
    return times.str();
}

int main(int count, char **arguments) {
    bool fused = count > 1 && std::string(arguments[1]) == "dw";
    std::vector<Network> network; // none or one
    for (std::string line; std::getline(std::cin, line) && line != "quit";) {
        std::istringstream words(line);
        std::string command, answer, rest;
        words >> command;
        try {
            if (command == "load") {
                network.clear();
                network.emplace_back(Case(words), fused);
                answer = std::string("ok nhwc ") + isa();
            } else if (network.empty()) {
                throw std::runtime_error("nothing is loaded");
            } else if (command == "run") {
                words >> rest;
                answer = "ok " + timed(network[0], std::stod(rest));
            } else if (command == "output" && std::getline(words >> std::ws, rest)) {
                network[0].output(rest);
                answer = "ok";
            } else {
                throw std::runtime_error("no command " + command);
            }
        } catch (const Unsupported &error) {
            answer = std::string("unsupported ") + error.what();
        } catch (const error &error) {
            answer = (error.status == dnnl_unimplemented ? "unsupported " : "error ") + std::string(error.what());
        } catch (const std::exception &error) {
            answer = std::string("error ") + error.what();
        }
        std::cout << answer << std::endl;
    }
}
